//! Compiles `proto/` with protox, so that no `protoc` is needed on the machine.

use std::error::Error;

const FILES: [&str; 6] = [
    "proto/auth.proto",
    "proto/election.proto",
    "proto/health.proto",
    "proto/kv.proto",
    "proto/lock.proto",
    "proto/rpc.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let mut config = prost_build::Config::new();
    // `bytes::Bytes` shares the decoder's buffer, so keys and values are not copied on their way in.
    config.bytes(["."]);
    // Clients alone, and without their connection code: the server side is `src/api`.
    let services = tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        .service_generator();
    config.service_generator(services);
    config.compile_fds(descriptors)?;
    Ok(())
}

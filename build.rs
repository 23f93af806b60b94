//! Compiles `proto/` with protox, so that no `protoc` is needed on the machine.

use prost_build::{Service, ServiceGenerator};
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
    config
        .bytes(["."])
        .service_generator(Box::new(Services::new()));
    config.compile_fds(descriptors)?;
    Ok(())
}

/// Writes client and server for each service, but for KV the client alone: the server side of the hot calls
/// is declared by hand, since its answers splice stored records instead of encoding messages.
struct Services {
    both: Box<dyn ServiceGenerator>,
    client: Box<dyn ServiceGenerator>,
}

impl Services {
    fn new() -> Self {
        // Without the transport helpers the library does not need a client's connection code.
        let builder = || tonic_prost_build::configure().build_transport(false);
        Self {
            both: builder().service_generator(),
            client: builder().build_server(false).service_generator(),
        }
    }
}

impl ServiceGenerator for Services {
    fn generate(&mut self, service: Service, code: &mut String) {
        if service.proto_name == "KV" {
            self.client.generate(service, code);
        } else {
            self.both.generate(service, code);
        }
    }

    fn finalize(&mut self, code: &mut String) {
        self.client.finalize(code);
        self.both.finalize(code);
    }

    fn finalize_package(&mut self, package: &str, code: &mut String) {
        self.client.finalize_package(package, code);
        self.both.finalize_package(package, code);
    }
}

//! Compiles `proto/` with protox, so that no `protoc` is needed on the machine.

use prost_build::{Service, ServiceGenerator};
use std::{env, error::Error, fs, path::Path};

const FILES: [&str; 6] = [
    "proto/auth.proto",
    "proto/election.proto",
    "proto/health.proto",
    "proto/kv.proto",
    "proto/lock.proto",
    "proto/rpc.proto",
];

/// The services that the `api` module of `quorate` answers without tonic: these need no generated server.
const THIN: [&str; 2] = ["KV", "Watch"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let mut config = prost_build::Config::new();
    // `bytes::Bytes` shares the decoder's buffer, so keys and values are not copied on their way in.
    config.bytes(["."]);
    config.service_generator(Box::new(Services::new()));
    // In a directory of its own: checkouts that share a target directory would mix theirs with older ones.
    let out_dir = Path::new(&env::var("OUT_DIR")?).join("api");
    fs::create_dir_all(&out_dir)?;
    config.out_dir(out_dir);
    config.compile_fds(descriptors)?;
    Ok(())
}

/// Generates a client for each service, and for most a server; neither with code for connections, which the
/// caller has.
struct Services {
    clients: Box<dyn ServiceGenerator>,
    servers: Box<dyn ServiceGenerator>,
}

impl Services {
    fn new() -> Self {
        let clients = tonic_prost_build::configure()
            .build_server(false)
            .build_transport(false);
        // A method without an implementation is unknown: `quorate` replaces the generated refusal with etcd's.
        let servers = tonic_prost_build::configure()
            .build_client(false)
            .build_transport(false)
            .generate_default_stubs(true)
            .codec_path("crate::codec::Codec");
        Self {
            clients: clients.service_generator(),
            servers: servers.service_generator(),
        }
    }
}

impl ServiceGenerator for Services {
    fn generate(&mut self, service: Service, out: &mut String) {
        if !THIN.contains(&service.name.as_str()) {
            self.servers.generate(service.clone(), out);
        }
        self.clients.generate(service, out);
    }
}

//! What a configuration must say, and what it says about bad ones.

use super::{layers::Value, *};

/// Loads a file of this text, with variables and flags over it.
fn load(
    file: &str,
    variables: &[(&str, &str)],
    flags: &[(&'static str, &'static str, &str)],
) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    std::fs::write(&path, file).unwrap();
    let sources = Sources {
        file: Some(path),
        variables: variables
            .iter()
            .map(|(name, text)| (name.into(), text.into()))
            .collect(),
        flags: flags
            .iter()
            .map(|(flag, key, text)| (*flag, *key, (*text).to_owned()))
            .collect(),
    };
    let prefix = format!("{}/", dir.path().display());
    Config::load(sources).map_err(|error| error.to_string().replace(&prefix, ""))
}

fn error(file: &str) -> String {
    load(file, &[], &[]).expect_err(file)
}

/// What must hold for etcd's clients is spelled out here once more, so that a changed default is a decision.
#[test]
fn defaults_are_one_member_with_the_limits_of_etcd() {
    let config = Config::default();
    assert_eq!(config.name, "default");
    assert_eq!(config.data_dir, PathBuf::from("quorate-data"));
    let clients: Vec<String> = config
        .client_advertise()
        .iter()
        .map(ClientAddress::url)
        .collect();
    assert_eq!(clients, ["http://127.0.0.1:2379"]);
    assert_eq!(config.peer_advertise().to_string(), "127.0.0.1:2380");
    assert_eq!(config.peer.tls, PeerTls::Unset);
    assert!(config.cluster.initial.is_empty(), "one member alone");
    assert_eq!(config.cluster.token, "etcd-cluster");
    assert_eq!(config.raft.heartbeat, Duration::from_millis(100));
    assert_eq!(config.raft.election, Duration::from_secs(1));
    assert_eq!(config.limits.request_bytes_max, 1_572_864);
    assert_eq!(config.limits.txn_ops_max, 128);
    assert_eq!(config.limits.quota_bytes, Some(2_147_483_648));
    assert_eq!(config.limits.apply_gap_max, 5_000);
    assert_eq!(config.limits.leases_max, 1_000_000);
    assert_eq!(config.auto_compaction, AutoCompaction::Off);
    assert_eq!(config.compaction.batch, 1_000);
    assert_eq!(config.compaction.pause, Duration::from_millis(10));
    assert_eq!(config.watch.progress_interval, Duration::from_mins(10));
    assert_eq!(config.lease.checkpoint_interval, Duration::from_mins(5));
    assert_eq!(config.storage.commit_interval, Duration::from_millis(100));
    assert_eq!(config.storage.commit_records_max, 2_500);
    assert_eq!(config.storage.log_keep_entries, 100_000);
    assert_eq!(config.storage.log_keep_bytes, 512 * 1024 * 1024);
    assert_eq!(config.storage.snapshot_bytes_per_sec, 32 * 1024 * 1024);
    assert_eq!(config.runtime.api_arbiters, None);
}

#[test]
fn the_whole_commented_file_is_a_valid_one() {
    let config = load(layers::DEFAULTS, &[], &[]).unwrap();
    assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
}

/// A key that `check` leaves out would be accepted without effect: so each key, given a wrong value, must be refused.
#[test]
fn every_key_is_checked() {
    for key in Layers::defaults().keys() {
        let mut layers = Layers::defaults();
        let wrong = match &layers.get(key).value {
            Value::Text(_) if key.starts_with("peer.") && key != "peer.listen" => "x",
            Value::Text(_) if matches!(key, "name" | "data_dir" | "cluster.token") => "",
            // Every text names a file, or is a command.
            Value::Text(_) if key.starts_with("encryption.key_") => continue,
            Value::Text(_) => "?",
            Value::Integer(_) if key == "limits.quota_bytes" => continue, // every number means something
            Value::Integer(_) => "-7",
            Value::Switch(_) => continue,
            Value::List(_) => "nonsense",
        };
        layers.lay_flag("--flag", key, wrong).unwrap();
        let error = check(&layers).expect_err(key).to_string();
        // One of three TLS files alone is reported at a file that is missing.
        assert!(
            error.contains(key) || key.starts_with("peer."),
            "{key}: {error}"
        );
    }
}

#[test]
fn the_environment_lies_over_the_file_and_flags_over_both() {
    let file = "name = 'file'\ndata_dir = 'file'\n[client]\nlisten = 'file:1'";
    let variables = [
        ("QUORATE_DATA_DIR", "variable"),
        ("QUORATE_CLIENT_LISTEN", "variable:1"),
    ];
    let config = load(
        file,
        &variables,
        &[("--client-listen", "client.listen", "flag:1")],
    )
    .unwrap();
    assert_eq!(config.name, "file");
    assert_eq!(config.data_dir, PathBuf::from("variable"));
    assert_eq!(listened(&config), ["flag:1"]);
}

fn listened(config: &Config) -> Vec<String> {
    let listen = config.client.listen.iter();
    listen.map(ToString::to_string).collect()
}

#[test]
fn a_list_may_be_one_string_with_commas_everywhere() {
    let expected = ["127.0.0.1:1", "[::1]:2", "unix:///run/q.sock"];
    let text = "127.0.0.1:1, http://[::1]:2,unix:///run/q.sock,127.0.0.1:1";
    let inputs = [
        format!("client.listen = '{text}'"),
        "client.listen = ['127.0.0.1:1', 'http://[::1]:2', 'unix:///run/q.sock']".to_owned(),
    ];
    for file in inputs {
        assert_eq!(
            listened(&load(&file, &[], &[]).unwrap()),
            expected,
            "{file}"
        );
    }
    let variable = load("", &[("QUORATE_CLIENT_LISTEN", text)], &[]).unwrap();
    assert_eq!(listened(&variable), expected);
    let flag = load("", &[], &[("--client-listen", "client.listen", text)]).unwrap();
    assert_eq!(listened(&flag), expected);
    let members = load(
        "cluster.initial = 'default=a:1,b=b:1'\npeer.insecure = true",
        &[],
        &[],
    );
    assert_eq!(members.unwrap().cluster.initial.len(), 2);
}

#[test]
fn clients_are_told_of_ports_unless_there_are_none() {
    for (file, expected) in [
        (
            "client.listen = 'a:1,unix:///q,b:2'",
            "http://a:1 http://b:2",
        ),
        ("client.listen = 'unix:///q,unix://r'", "unix:///q unix://r"),
        (
            "client.listen = 'a:1'\nclient.advertise = ['unix:///q', '[fe80::1%eth0]:2']",
            "unix:///q http://[fe80::1%25eth0]:2",
        ),
    ] {
        let config = load(file, &[], &[]).unwrap();
        let urls = config.client_advertise();
        let urls: Vec<String> = urls.iter().map(ClientAddress::url).collect();
        assert_eq!(urls.join(" "), expected, "{file}");
    }
}

#[test]
fn variables_of_others_are_left_alone() {
    let others = [
        "PATH",
        "QUORATE_TEST_SEED",
        "QUORATE_SERVICE_HOST",
        "QUORATE_PORT_2379_TCP",
        "QUORATE_PORT_2379_TCP_ADDR",
        "QUORATE_CLIENT_SERVICE_HOST",
        "QUORATE_CLIENT_SERVICE_PORT",
        "QUORATE_CLIENT_SERVICE_PORT_GRPC",
        "QUORATE_CLIENT_PORT",
        "QUORATE_CLIENT_PORT_2379_TCP_PROTO",
    ];
    let others: Vec<_> = others
        .iter()
        .map(|name| (*name, "x"))
        .chain([("QUORATE_PORT", "x")])
        .collect();
    let loaded = load("", &others, &[]).expect("a service called quorate does not stop the start");
    assert_eq!(
        loaded.skipped_variables.len(),
        others.len() - 2,
        "{loaded:?}"
    );
    let misspelled = load("", &[("QUORATE_CLIENT_PORT_2379_TLS", "x")], &[]);
    assert!(misspelled.is_err(), "it is none of a service");
}

#[test]
fn only_a_spelling_that_is_near_is_suggested() {
    let far = load("", &[("QUORATE_ENDPOINTS", "x")], &[]).unwrap_err();
    assert!(!far.contains("did you mean"), "{far}");
    let far = error("colour = 'blue'");
    assert!(!far.contains("did you mean"), "{far}");
    let near = error("[raft]\nhartbeat_ms = 100");
    assert!(near.contains("did you mean raft.heartbeat_ms?"), "{near}");
}

#[test]
fn what_member_add_prints_can_be_pasted() {
    let initial = (
        "--initial-cluster",
        "cluster.initial",
        "default=https://a:1,b=http://b:1",
    );
    let insecure = ("--peer-insecure", "peer.insecure", "true");
    let config = load("", &[], &[initial, insecure]).unwrap();
    let peers = config.cluster.initial.iter();
    let peers: Vec<String> = peers.map(|member| member.peer.to_string()).collect();
    assert_eq!(peers, ["a:1", "b:1"]);
}

#[test]
fn unknown_keys_and_variables_are_named_with_what_is_meant() {
    assert_eq!(
        error("\n[raft]\nelection = 5"),
        "node.toml:3: unknown key raft.election = 5; did you mean raft.election_ms? \
         [raft] takes disk_stall_ms, election_ms, heartbeat_ms"
    );
    assert_eq!(
        error("data-dir = 'x'"),
        "node.toml:1: unknown key data-dir = \"x\"; did you mean data_dir? the file takes \
         audit, auth, auto_compaction, client, cluster, compaction, data_dir, encryption, lease, limits, log, name, peer, raft, \
         runtime, storage, tls, watch"
    );
    let unknown = error("[rafts]");
    assert!(
        unknown.starts_with("node.toml:1: unknown key rafts = a table"),
        "{unknown}"
    );
    let unknown = error("[rafts]\nelection_ms = 1");
    assert!(
        unknown.contains("rafts.election_ms = 1; did you mean raft.election_ms?"),
        "{unknown}"
    );
    assert_eq!(
        load("", &[("QUORATE_DATADIR", "x")], &[]).unwrap_err(),
        "unknown environment variable QUORATE_DATADIR = \"x\"; did you mean QUORATE_DATA_DIR? \
         each is QUORATE_ and a key of config/node.toml in capitals, with _ for the dot"
    );
}

/// A file, and what is said about it.
const BAD_VALUES: [(&str, &str); 18] = [
    ("name = 5", "node.toml:1: name = 5: must be a string"),
    (
        "raft = 5",
        "node.toml:1: raft = 5: must be a section, [raft]",
    ),
    (
        "limits.txn_ops_max = 1.5",
        "node.toml:1: limits.txn_ops_max = 1.5: must be an integer of at most 64 bits",
    ),
    (
        "limits.txn_ops_max = 0",
        "node.toml:1: limits.txn_ops_max = 0: must be from 1 to 65536",
    ),
    (
        "raft.election_ms = 499",
        "node.toml:1: raft.election_ms = 499: must be at least five times \
             raft.heartbeat_ms: 500 to 50000",
    ),
    (
        "raft.election_ms = 50001",
        "node.toml:1: raft.election_ms = 50001: must be from 1 to 50000",
    ),
    (
        "raft.heartbeat_ms = 201",
        "default: raft.election_ms = 1000: must be at least five times raft.heartbeat_ms: 1005 to 50000",
    ),
    (
        "log.format = 'xml'",
        "node.toml:1: log.format = \"xml\": must be one of auto, text, json",
    ),
    (
        "client.listen = '2379'",
        "node.toml:1: client.listen = [\"2379\"]: must be a list of HOST:PORT, like 127.0.0.1:2379, \
             https://10.0.0.1:2379 or [::1]:2379, and unix:///PATH",
    ),
    (
        "client.advertise = 'a:0'",
        "node.toml:1: client.advertise = [\"a:0\"]: must be empty, or a list of HOST:PORT that clients can reach (a port \
             above 0, and not 0.0.0.0 or [::]) and unix:///PATH",
    ),
    (
        "peer.cert = 'c'",
        "node.toml:1: peer.cert = \"c\": must be given together with peer.key and peer.ca",
    ),
    (
        "auto_compaction.retention = '1d'",
        "node.toml:1: auto_compaction.retention = \"1d\": must be a duration like \
             \"30m\" or \"1h30m\", or hours",
    ),
    (
        "storage.wal_segment_bytes = 1048577",
        "node.toml:1: storage.wal_segment_bytes = 1048577: must be a multiple of 4096",
    ),
    (
        "cluster.initial = [1]",
        "node.toml:1: cluster.initial = a list: must be a string or a list of strings",
    ),
    (
        "cluster.initial = ['n1']",
        "node.toml:1: cluster.initial = [\"n1\"]: must be a list of name=host:port \
             (name=https://host:port is the same), with hosts that other members can reach",
    ),
    (
        "cluster.initial = ['n1=a:1']",
        "node.toml:1: cluster.initial = [\"n1=a:1\"]: must be a list that has this \
             member, \"default\", too",
    ),
    (
        "cluster.initial = ['a=a:1', 'a=b:1']",
        "node.toml:1: cluster.initial = [\"a=a:1\", \"a=b:1\"]: must be a list that \
             has each name and each address once",
    ),
    (
        "peer.insecure = 'yes'",
        "node.toml:1: peer.insecure = \"yes\": must be true or false",
    ),
];

#[test]
fn bad_values_are_named_with_what_is_allowed() {
    for (file, expected) in BAD_VALUES {
        assert_eq!(error(file), expected);
    }
    let variable = load("", &[("QUORATE_LIMITS_QUOTA_BYTES", "2GB")], &[]).unwrap_err();
    let expected = "environment variable QUORATE_LIMITS_QUOTA_BYTES: limits.quota_bytes = \
     \"2GB\": must be an integer of at most 64 bits";
    assert_eq!(variable, expected);
    let flag = load("", &[], &[("--log-level", "log.level", "loud")]).unwrap_err();
    assert_eq!(
        flag,
        "--log-level: log.level = \"loud\": must be one of error, warn, info, debug, trace"
    );
}

#[test]
fn damaged_and_missing_files_are_named() {
    let damaged = error("name = 'a'\nname = 'b'\n");
    assert_eq!(damaged, "node.toml:2: not valid TOML: duplicate key");
    assert!(
        error("name =").starts_with("node.toml:1: not valid TOML: "),
        "a key without value"
    );
    let sources = Sources {
        file: Some("/no/such/file".into()),
        ..Sources::default()
    };
    let missing = Config::load(sources)
        .expect_err("there is no such file")
        .to_string();
    assert!(
        missing.starts_with("cannot read the configuration file /no/such/file: "),
        "{missing}"
    );
}

#[test]
fn a_quota_can_be_default_set_or_absent() {
    let quota = |file| load(file, &[], &[]).unwrap().limits.quota_bytes;
    assert_eq!(quota("limits.quota_bytes = 0"), Some(2_147_483_648));
    assert_eq!(quota("limits.quota_bytes = 1"), Some(1));
    assert_eq!(quota("limits.quota_bytes = -1"), None);
}

#[test]
fn retention_means_time_or_revisions() {
    let compaction = |mode: &str, retention: &str| {
        let file = format!("[auto_compaction]\nmode = '{mode}'\nretention = '{retention}'");
        load(&file, &[], &[]).map(|config| config.auto_compaction)
    };
    let hour = Duration::from_hours(1);
    assert_eq!(
        compaction("periodic", "1"),
        Ok(AutoCompaction::Periodic(hour))
    );
    assert_eq!(
        compaction("periodic", "60m"),
        Ok(AutoCompaction::Periodic(hour))
    );
    assert_eq!(
        compaction("revision", "1000"),
        Ok(AutoCompaction::Revision(1_000))
    );
    assert_eq!(compaction("revision", "0"), Ok(AutoCompaction::Off));
    assert!(
        compaction("revision", "1h").is_err(),
        "revisions are no time"
    );
    assert!(compaction("revision", "-1").is_err(), "negative");
}

#[test]
fn several_members_need_to_know_each_other() {
    let initial = ("--initial-cluster", "cluster.initial", "default=a:1, b=b:1");
    let refused = load("", &[], &[initial]).unwrap_err();
    assert!(
        refused.contains("certificates") && refused.contains("--peer-insecure"),
        "{refused}"
    );
    let insecure = ("--peer-insecure", "peer.insecure", "true");
    let config = load("", &[], &[initial, insecure]).unwrap();
    assert_eq!(config.peer_advertise().to_string(), "a:1");
    assert_eq!(config.cluster.initial.len(), 2);
    let joins = error("cluster.state = 'existing'");
    assert!(joins.contains("certificates"), "{joins}");
    let alone = [("--initial-cluster", "cluster.initial", "default=a:1")];
    assert!(load("", &[], &alone).is_ok(), "one member alone needs none");
}

fn auth(lines: &str) -> Result<TokenKind, String> {
    load(&format!("[auth]\n{lines}"), &[], &[]).map(|config| config.auth.token)
}

#[test]
fn tokens_are_set_in_our_notation_or_in_etcds() {
    assert_eq!(Config::default().auth.token, TokenKind::Simple);
    let jwt = |private: Option<&str>, public: &[&str], secs| {
        TokenKind::Jwt(JwtConfig {
            sign_method: "RS256".into(),
            private_key: private.map(PathBuf::from),
            public_keys: public.iter().map(PathBuf::from).collect(),
            ttl: Duration::from_secs(secs),
        })
    };
    let good = [
        ("token = 'simple'", TokenKind::Simple),
        (
            "token = 'jwt,pub-key=a,priv-key=b,sign-method=RS256,ttl=10m'",
            jwt(Some("b"), &["a"], 600),
        ),
        (
            "token = 'jwt,sign-method=RS256,pub-key=a'",
            jwt(None, &["a"], 300),
        ),
        (
            "token = 'jwt'\njwt_sign_method = 'RS256'\njwt_private_key = 'b'\njwt_ttl_secs = 7",
            jwt(Some("b"), &[], 7),
        ),
        (
            "token = 'jwt,sign-method=RS256,pub-key=a'\njwt_public_keys = ['c', 'd']",
            jwt(None, &["a", "c", "d"], 300),
        ),
    ];
    for (lines, expected) in good {
        assert_eq!(auth(lines), Ok(expected), "{lines}");
    }
    let bad = [
        ("token = 'jwt'", "auth.jwt_sign_method"),
        ("token = 'jwt'", "must be one of RS256, "),
        ("token = 'jwt'", "EdDSA, since auth.token is jwt"),
        ("token = 'jwt,pub-key=a'", "auth.jwt_sign_method"),
        ("token = 'jwt,pub-key=a,sign-method=none'", "sign-method"),
        (
            "token = 'jwt,pub-key=a,sign-method=ES512'",
            "ES512 needs keys of P-521",
        ),
        (
            "token = 'jwt'\njwt_sign_method = 'ES512'\njwt_private_key = 'b'",
            "take ES384 or EdDSA",
        ),
        ("token = 'jwt,sign-method=RS256'", "priv-key"),
        ("token = 'jwt,sign-method=RS256,pub-key=a,ttl=x'", "ttl"),
        ("token = 'jwt,sign-method=RS256,pub-key=a,ttl=0s'", "ttl"),
        (
            "token = 'jwt,sign-method=RS256,pub-key=a,pub-key=b'",
            "pub-key",
        ),
        ("token = 'jwt,sign-method=RS256,pub-key'", "pub-key"),
        ("token = 'jwt,sign-method=RS256,foo=1'", "foo"),
        ("token = 'jwt,sign-method=HS256,pub-key=a'", "priv-key"),
        ("token = 'bearer'", "simple"),
        ("jwt_private_key = 'a'", "auth.jwt_private_key"),
        ("jwt_public_keys = ['a']", "auth.jwt_public_keys"),
        ("jwt_sign_method = 'RS256'", "auth.jwt_sign_method"),
        (
            "token = 'jwt,sign-method=RS256,priv-key=a'\njwt_private_key = 'b'",
            "auth.jwt_private_key",
        ),
    ];
    for (lines, named) in bad {
        let error = auth(lines).expect_err(lines);
        assert!(error.contains(named), "{lines}: {error}");
    }
}

#[test]
fn encryption_has_one_source_of_keys() {
    let read = |lines: &str| {
        let config = load(&format!("[encryption]\n{lines}"), &[], &[]);
        config.map(|config| config.encryption)
    };
    assert_eq!(Config::default().encryption.key, None);
    let file = read("key_file = 'k'\nalgorithm = 'chacha20-poly1305'").unwrap();
    assert_eq!(file.key, Some(EncryptionKey::File("k".into())));
    assert_eq!(file.algorithm, EncryptionAlgorithm::ChaCha20Poly1305);
    let command = read("key_command = 'print-key'").unwrap();
    assert_eq!(
        command.key,
        Some(EncryptionKey::Command("print-key".to_owned()))
    );
    let both = read("key_file = 'k'\nkey_command = 'print-key'").unwrap_err();
    for key in ["encryption.key_command", "encryption.key_file"] {
        assert!(both.contains(key), "{both}");
    }
    assert!(!both.contains("print-key"), "it may hold a secret: {both}");
    let other = read("algorithm = 'rot13'").unwrap_err();
    assert!(
        other.contains("one of aes-256-gcm, chacha20-poly1305"),
        "{other}"
    );
    let alone = read("algorithm = 'aes-256-gcm'").unwrap_err();
    let expected = "encryption.algorithm = \"aes-256-gcm\": must be given together with encryption.key_file or \
                    encryption.key_command: without a key encryption is off";
    assert!(alone.contains(expected), "{alone}");
    let off = read("algorithm = 'aes-256-gcm'\nkey_file = ''").unwrap();
    assert_eq!(off.key, None, "that was said");
}

#[test]
fn the_audit_log_goes_where_it_says() {
    let audit = |line: &str| load(&format!("[audit]\n{line}"), &[], &[]).map(|config| config.audit);
    assert_eq!(Config::default().audit.output, AuditOutput::Off);
    for (output, expected) in [
        ("stderr", AuditOutput::Stderr),
        ("stdout", AuditOutput::Stdout),
        ("file:/a/b", AuditOutput::File("/a/b".into())),
    ] {
        let found = audit(&format!("output = '{output}'")).unwrap();
        assert_eq!((found.output, found.level), (expected, AuditLevel::Writes));
    }
    for output in ["file:", "file:/a/", "/a/b", "journal"] {
        let error = audit(&format!("output = '{output}'")).unwrap_err();
        assert!(error.contains("audit.output"), "{error}");
    }
}

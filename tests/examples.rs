//! The examples run as their first lines say, and print what they should.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: what cannot be unwrapped fails the test"
)]

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// The program that `cargo test` built for an example, beside this test's own folder. Building it here would build all its
/// dependencies again wherever the tests have other features.
fn program(example: &str) -> PathBuf {
    let own = env::current_exe().unwrap();
    let built = own.parent().and_then(Path::parent).unwrap();
    let program = built.join("examples").join(example);
    assert!(
        program.is_file(),
        "{} is missing: `cargo test` builds it, `cargo test --test examples` needs `cargo build --examples` first",
        program.display()
    );
    program
}

/// Runs an example to its end and gives the lines it printed.
fn run(example: &str) -> Vec<String> {
    // Its data go there, and are removed also when it fails.
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(program(example))
        .env("TMPDIR", folder.path())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(
        output.status.success(),
        "{example} failed: {stdout}{stderr}"
    );
    stdout.lines().map(str::to_owned).collect()
}

#[test]
fn the_service_registry_sees_instances_come_and_go() {
    let lines = run("service_registry");
    assert_eq!(
        lines,
        [
            "web-1 registers at 10.0.0.1:80",
            r#"discovered: ["10.0.0.1:80"]"#,
            "web-2 registers at 10.0.0.2:80",
            "web-2 crashes: nobody renews its lease any more",
            "watch: services/web/web-2 is there",
            "watch: services/web/web-2 is gone",
            r#"discovered: ["10.0.0.1:80"]"#,
            "web-1 stops in good order: it revokes its lease",
            "watch: services/web/web-1 is gone",
            "discovered: []",
        ]
    );
}

/// One worker leads at a time, and one that was paused for longer than its lease is fenced off.
#[test]
fn one_worker_leads_at_a_time_and_a_late_write_changes_nothing() {
    let lines = run("leader_worker");
    let line = |text: &str| {
        let found = lines.iter().position(|line| line.starts_with(text));
        found.unwrap_or_else(|| panic!("no `{text}` in {lines:#?}"))
    };
    let first = line("alice leads; its fencing number is");
    let paused = line("alice is paused for longer than its lease lives");
    let second = line("bob leads; its fencing number is");
    assert!(first < paused && paused < second, "{lines:#?}");
    line("alice wakes up and still believes it leads; its write goes through: false");
    line("bob is done and resigns");
    line("observer: alice leads since revision");
    line("observer: bob leads since revision");
}

#[test]
fn the_config_subscriber_sees_every_change_once() {
    let lines = run("config_subscriber");
    assert_eq!(
        lines,
        [
            r#"the service begins at revision 3 with {"log-level": "info", "workers": "4"}"#,
            "revision 4: log-level is debug now, was info",
            "two changes in one transaction are one batch:",
            "revision 5: workers is 8 now, was 4",
            "revision 5: log-level is gone, was debug",
            "the service goes away, with its copy at hand; two changes are made; it comes back:",
            "revision 6: workers is 16 now, was 8",
            "revision 7: workers is 32 now, was 16",
            "it goes away once more, and history is compacted meanwhile:",
            "the service was away for too long: what it missed is compacted",
            r#"the service begins at revision 9 with {"workers": "64"}"#,
        ]
    );
}

//! The examples run as their first lines say, and print what they should.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: what cannot be unwrapped fails the test"
)]

use std::process::Command;

/// Runs an example to its end and gives the lines it printed. It is built first if it is not there as it should be.
fn run(example: &str) -> Vec<String> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let mut command = Command::new(env!("CARGO"));
    command.args([
        "run",
        "--quiet",
        "--manifest-path",
        manifest,
        "--example",
        example,
    ]);
    let output = command.output().unwrap();
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

/// Who leads, and that whoever was paused for longer than its lease lived is fenced off.
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

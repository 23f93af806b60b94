//! What the examples tell is what happens.

use std::sync::Mutex;

#[allow(
    dead_code,
    clippy::print_stdout,
    reason = "its `main` is for the command line"
)]
#[path = "../examples/config_subscriber.rs"]
mod config_subscriber;

/// What the config subscriber told.
static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());

#[test]
fn the_config_subscriber_sees_every_change_once() {
    let home = tempfile::tempdir().unwrap();
    let data_dir = home.path().join("data");
    let story =
        config_subscriber::story(&data_dir, |line| TOLD.lock().unwrap().push(line.to_owned()));
    actix::System::new().block_on(story).unwrap();
    let expected = [
        "the service begins at revision 3 with {\"log-level\": \"info\", \"workers\": \"4\"}",
        "revision 4: log-level is debug now, was info",
        "two changes in one transaction are one batch:",
        "revision 5: workers is 8 now, was 4",
        "revision 5: log-level is gone, was debug",
        "the service goes away, with its copy at hand; two changes are made; it comes back:",
        "revision 6: workers is 16 now, was 8",
        "revision 7: workers is 32 now, was 16",
        "it goes away once more, and history is compacted meanwhile:",
        "the service was away for too long: what it missed is compacted",
        "the service begins at revision 9 with {\"workers\": \"64\"}",
    ];
    assert_eq!(*TOLD.lock().unwrap(), expected);
}

//! Where the real etcd and its command line are, for tests that compare with them or drive them.
//!
//! A variable may name a program: `QUORATE_TEST_ETCD`, `QUORATE_TEST_ETCDCTL`. Otherwise it is the one that `tests/etcd/build`
//! has built into the target folder, of the version that Quorate follows; otherwise the one on the `PATH`, which is 3.4 on
//! Debian. A missing one fails the test and says what to install.

#![allow(
    dead_code,
    reason = "not every test program that includes this file needs all of it"
)]

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The real etcd.
pub(crate) fn etcd() -> PathBuf {
    find("etcd", "QUORATE_TEST_ETCD", "etcd-server")
}

/// The real etcdctl.
pub(crate) fn etcdctl() -> PathBuf {
    find("etcdctl", "QUORATE_TEST_ETCDCTL", "etcd-client")
}

/// etcd's tool for its files; none where there is no Go: Debian's etcd is older than the tool.
pub(crate) fn etcdutl() -> Option<PathBuf> {
    built_with(&["go"], "etcd/etcdutl", "tests/etcd/build")
}

/// The tests of etcd's Go client, which `tests/etcd/build` builds; none where Go is not installed.
pub(crate) fn go_client() -> Option<PathBuf> {
    built_with(&["go"], "etcd/go-client", "tests/etcd/build")
}

/// The tests of Kubernetes' storage layer, which `tests/etcd/build` builds; none where Go is not installed.
pub(crate) fn kubernetes() -> Option<PathBuf> {
    built_with(&["go"], "etcd/kubernetes", "tests/etcd/build")
}

/// Where Java finds the tests of jetcd, which `tests/jetcd/build` compiles; none where Java or Maven is not installed.
pub(crate) fn jetcd() -> Option<String> {
    // The stamp is written when all the rest is there.
    let built = built_with(
        &["java", "javac", "mvn"],
        "jetcd/stamp",
        "tests/jetcd/build",
    )?;
    let built = built.parent()?.display();
    Some(format!("{built}/classes:{built}/lib/*"))
}

/// A file of the target folder which a script makes where these programs are; none where they are not.
fn built_with(programs: &[&str], file: &str, script: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let there = |program: &&str| env::split_paths(&path).any(|dir| dir.join(program).is_file());
    if !programs.iter().all(there) {
        return None;
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
    let built = target.map(|target| target.join(file));
    let built = built.filter(|built| built.is_file());
    assert!(built.is_some(), "{programs:?} is installed: run {script}");
    built
}

/// Finds `program`, or fails the test with the package that has it: a silent skip would look like a pass.
fn find(program: &str, variable: &str, package: &str) -> PathBuf {
    if let Some(path) = env::var_os(variable) {
        let path = PathBuf::from(path);
        assert!(
            path.is_file(),
            "{variable}={} is not a file",
            path.display()
        );
        return path;
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
    let built = target.map(|target| target.join("etcd"));
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places = built.into_iter().chain(env::split_paths(&path));
    let found = places.find_map(|dir| Some(dir.join(program)).filter(|file| file.is_file()));
    found.unwrap_or_else(|| {
        panic!(
            "this test needs `{program}`, which is not on the PATH: run tests/etcd/build, install Debian's package with \
             `apt-get install {package}`, or set {variable} to the program's path"
        )
    })
}

/// Major and minor version of the installed etcd.
pub(crate) fn etcd_version() -> (u32, u32) {
    static VERSION: OnceLock<(u32, u32)> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let output = Command::new(etcd())
            .arg("--version")
            .output()
            .expect("etcd --version runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        parse_version(&text).unwrap_or_else(|| panic!("no version in `etcd --version`: {text}"))
    })
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text
        .lines()
        .next()?
        .strip_prefix("etcd Version: ")?
        .split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[test]
#[should_panic(expected = "apt-get install no-such-package")]
fn a_missing_tool_names_its_package() {
    find(
        "no-such-program",
        "QUORATE_TEST_NO_SUCH_PROGRAM",
        "no-such-package",
    );
}

#[test]
fn versions_are_read_from_the_first_line() {
    assert_eq!(
        parse_version("etcd Version: 3.4.23\nGit SHA: x\n"),
        Some((3, 4))
    );
    assert_eq!(parse_version("something else"), None);
}

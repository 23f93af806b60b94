//! The rules of `CONTRIBUTING.md` that a program can check: who may use whom, what pure code stays away from, how files
//! look, which licences we build on. A failure lists every place and says why the rule is there.

#[path = "tidy/circles.rs"]
mod circles;
#[path = "tidy/imports.rs"]
mod imports;
#[path = "tidy/picture.rs"]
mod picture;
#[path = "tidy/source.rs"]
mod source;

use circles::Graph;
use source::{Source, begins_with, sources};
use spdx::{Expression, ParseMode};
use std::{collections::BTreeSet, path::Path, process::Command};
use toml::de::DeTable;

/// What a module of the crate may use, and why no more. An entry `a::b` admits that part of `a` only.
const MAY_USE: &[(&str, &[&str], &str)] = &[
    ("types", &[], "every layer shares them, so they know none"),
    (
        "clock",
        &["types"],
        "the only reader of time and entropy knows nothing it could bias",
    ),
    ("codec", &[], "one way to spell bytes, whatever they mean"),
    (
        "log_gate",
        &["clock"],
        "whether a text is news depends on when it was logged, and on nothing else",
    ),
    (
        "failpoint",
        &[],
        "a crash must not depend on what it interrupts",
    ),
    (
        "fuzzing",
        &["api", "codec", "config", "kv", "net", "storage"],
        "it feeds bytes to whatever reads bytes; only tests and fuzzers are compiled with it",
    ),
    (
        "mutation",
        &[],
        "a deliberate bug sits in its place with one word, wherever that is",
    ),
    (
        "config",
        &[],
        "it is checked before anything that it configures exists",
    ),
    (
        "raft",
        &["types", "mutation"],
        "consensus that knows no disk and no store can be simulated",
    ),
    (
        "auth",
        &["codec", "mutation"],
        "who may do what follows from the log alone, so it is the same on every member",
    ),
    (
        "jwt",
        &[],
        "what a token says follows from its text, the keys and the time, whoever asks",
    ),
    (
        "audit",
        &["clock", "log_gate"],
        "it writes lines down and knows nothing of the calls they are about",
    ),
    (
        "kv",
        &["types", "codec", "mutation", "auth"],
        "a data model without I/O gives the same bytes on every member",
    ),
    (
        "storage",
        &["types", "codec", "failpoint", "mutation"],
        "it keeps bytes; what they mean is others' business",
    ),
    (
        "tls",
        &["clock"],
        "what a certificate is worth does not depend on who connects",
    ),
    (
        "net",
        &["types", "clock", "log_gate", "raft", "codec", "tls"],
        "peers exchange consensus messages, no more; dialling again takes a clock",
    ),
    (
        "actors",
        &[
            "types",
            "clock",
            "codec",
            "log_gate",
            "failpoint",
            "mutation",
            "raft",
            "auth",
            "jwt",
            "kv",
            "storage",
            "net",
        ],
        "actors are glue under the front ends, so they do not know them",
    ),
    (
        "import",
        &["types", "codec", "auth", "kv", "storage", "actors::load"],
        "what an etcd's log does follows from the log and the state machine, wherever the result is put",
    ),
    (
        "services",
        &["types", "auth", "kv", "actors"],
        "locks and elections are recipes on top of the requests that everyone has",
    ),
    (
        "api",
        &[
            "types",
            "clock",
            "log_gate",
            "failpoint",
            "audit",
            "auth",
            "kv",
            "actors",
            "services",
            "tls",
        ],
        "front ends ask the actors; they never touch disk or consensus themselves",
    ),
    (
        "node",
        &[
            "types",
            "clock",
            "codec",
            "config",
            "failpoint",
            "mutation",
            "audit",
            "auth",
            "jwt",
            "raft",
            "kv",
            "storage",
            "net",
            "actors",
            "import",
            "api",
            "tls",
        ],
        "the composition root; the program around it is not its business",
    ),
    (
        "local_cluster",
        &["config", "net", "tls", "api::cluster_client"],
        "it makes files, starts processes and adds members; what they do is theirs",
    ),
    (
        "snapshot_command",
        &["api::snapshot_client"],
        "it is a client of whatever member it asks, and touches no data directory",
    ),
    (
        "log",
        &["config"],
        "logging is set up for the program, not for a part of it",
    ),
    (
        "cli",
        &["config", "net", "local_cluster", "snapshot_command"],
        "it turns arguments into settings and runs nothing",
    ),
];

/// Other crates that only some modules may use, and why.
const ONLY_IN: &[(&str, &[&str], &str)] = &[
    (
        "quorate_proto",
        &["api"],
        "only the API knows its wire format, so that the rest can be used without it",
    ),
    (
        "quorate_etcd_files",
        &["actors", "import", "node", "snapshot_command"],
        "what etcd stores is no format of ours: an image is made of a commit, a file is looked at, restored or imported",
    ),
    (
        "quorate_bench",
        &["cli"],
        "a member that is embedded does not carry the load generator",
    ),
];

/// Modules of which some files still import each other in a circle. A module leaves this list with its last circle.
const CIRCLES_LEFT: &[&str] = &[];

/// Modules whose results must follow from their inputs alone.
const PURE: [&str; 4] = ["types", "auth", "kv", "raft"];

/// What they stay away from: a path, or a name anywhere in one; and why.
const IMPURE: &[(&str, &str)] = &[
    (
        "std::time",
        "time arrives as ticks or Millis, so that a test and a replay can give it",
    ),
    (
        "std::thread",
        "one thread runs a core, and which one is its owner's business",
    ),
    ("std::fs", "disks belong to storage"),
    ("std::net", "sockets belong to net and api"),
    ("std::env", "settings arrive as values"),
    (
        "std::process",
        "a core returns errors; its owner decides what ends",
    ),
    ("tokio", "a core waits for nothing"),
    ("actix", "a core is driven by actors and knows none"),
    ("actix_rt", "a core is driven by actors and knows none"),
    (
        "redb",
        "past data comes through a trait that the core declares",
    ),
    (
        "rand",
        "randomness arrives as a seed, or a run could not be repeated",
    ),
    (
        "fastrand",
        "randomness arrives as a seed, or a run could not be repeated",
    ),
    ("Instant", "time arrives as ticks or Millis"),
    ("SystemTime", "time arrives as ticks or Millis"),
    ("Mutex", "a core has one owner, so it needs no lock"),
    ("RwLock", "a core has one owner, so it needs no lock"),
    ("Condvar", "a core waits for nothing"),
    ("mpsc", "a core returns what it has to say"),
    (
        "HashMap",
        "its order differs by member and by run; use BTreeMap",
    ),
    (
        "HashSet",
        "its order differs by member and by run; use BTreeSet",
    ),
];

/// The most lines of a source file: past it nobody holds it in mind, and a part of it wants a name of its own.
const FILE_LINES_MAX: usize = 800;

/// The widest line of prose or text. rustfmt holds code to 100; rows of tables are as wide as they must be.
const LINE_WIDTH_MAX: usize = 130;

/// What `cargo deny` reads as well. This test needs no further tool, so the list holds on every machine.
const DENY: &str = include_str!("../deny.toml");

/// Where packages come from.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

#[test]
fn modules_use_only_what_their_line_names() {
    let mut findings = Vec::new();
    for file in sources("src")
        .iter()
        .filter(|file| !file.is_root() && !file.for_tests)
    {
        let own = file.module[0].as_str();
        let Some((_, allowed, why)) = MAY_USE.iter().find(|(module, ..)| *module == own) else {
            findings.push(format!("{}: give `{own}` a line in MAY_USE", file.shown()));
            continue;
        };
        for used in file
            .paths
            .iter()
            .filter_map(|path| path.strip_prefix("crate::"))
        {
            if !begins_with(used, own) && !allowed.iter().any(|part| begins_with(used, part)) {
                findings.push(format!(
                    "{}: `{own}` uses `{used}`, but {why}",
                    file.shown()
                ));
            }
        }
    }
    report(
        "modules use what they must not (docs/architecture.md has the map)",
        &findings,
    );
}

#[test]
fn some_crates_are_used_in_their_place_only() {
    let mut findings = Vec::new();
    for file in sources("src").iter().filter(|file| !file.is_root()) {
        for (name, places, why) in ONLY_IN {
            let elsewhere = !places.contains(&file.module[0].as_str());
            if elsewhere && file.paths.iter().any(|path| begins_with(path, name)) {
                findings.push(format!("{}: uses `{name}`, but {why}", file.shown()));
            }
        }
    }
    report("modules use crates that they must not", &findings);
}

/// A program that embeds a member has no more than the examples have; `tests/face.rs` tries the public face as such a program.
#[test]
fn examples_use_only_what_is_public() {
    let mut findings = Vec::new();
    let face = sources("tests").into_iter();
    let face = face.filter(|file| file.shown() == "tests/face.rs");
    let files: Vec<Source> = sources("examples").into_iter().chain(face).collect();
    assert!(files.len() > 1, "the rule is for no file");
    for file in files {
        if file
            .paths
            .iter()
            .any(|path| begins_with(path, "quorate::internals"))
        {
            findings.push(format!(
                "{}: uses `quorate::internals`, but only what others can use is tried here",
                file.shown()
            ));
        }
    }
    report("examples look inside", &findings);
}

#[test]
fn every_permission_is_used() {
    let files = sources("src");
    let mut findings = Vec::new();
    for (module, allowed, _) in MAY_USE {
        let own = || {
            let of_module = |file: &&Source| file.module[0] == *module && !file.for_tests;
            files.iter().filter(of_module)
        };
        if own().next().is_none() {
            findings.push(format!("there is no module `{module}`"));
        }
        for part in *allowed {
            let used = |path: &String| {
                let inside = path.strip_prefix("crate::");
                inside.is_some_and(|path| begins_with(path, part))
            };
            if !own().any(|file| file.paths.iter().any(used)) {
                findings.push(format!("`{module}` may use `{part}` and does not"));
            }
        }
    }
    report("MAY_USE permits more than is needed", &findings);
}

#[test]
fn files_of_a_module_import_each_other_in_no_circle() {
    let files = sources("src");
    let graph = Graph::new(&files);
    let inside = files.iter().filter(|file| !file.is_root());
    let modules: BTreeSet<&str> = inside.map(|file| file.module[0].as_str()).collect();
    let mut findings = Vec::new();
    for module in modules {
        let circles = graph.circles(module);
        match (CIRCLES_LEFT.contains(&module), circles.is_empty()) {
            (false, false) => {
                let circles = circles.iter();
                findings.extend(circles.map(|circle| format!("`{module}`: {circle}")));
            }
            (true, true) => findings.push(format!("`{module}` has none: take it off the list")),
            (true, false) | (false, true) => {}
        }
    }
    report(
        "files import each other in a circle: none of them can be read, or tested, alone",
        &findings,
    );
}

/// The rule would pass in silence if imports led nowhere.
#[test]
fn circles_are_found_through_re_exports() {
    let parse = |(path, text): &(&str, &str)| Source::parse(Path::new(path), text);
    let mut files: Vec<Source> = [
        ("lib.rs", "//! x\npub mod m;"),
        (
            "m/mod.rs",
            "//! x\nmod a; mod b; mod c; pub use a::A; pub use b::*;",
        ),
        ("m/a.rs", "//! x\npub struct A; fn f() { super::b::B; }"),
        ("m/b.rs", "//! x\nuse super::A; pub struct B;"),
        (
            "m/c.rs",
            "//! x\nuse super::{A, B};\n#[cfg(test)] mod tests { use crate::m; }",
        ),
    ]
    .iter()
    .map(parse)
    .collect();
    let circles = Graph::new(&files).circles("m");
    let [circle] = circles.as_slice() else {
        panic!("one circle: {circles:?}");
    };
    for import in ["m/a.rs → m/b.rs", "m/b.rs → m/a.rs"] {
        assert!(circle.contains(import), "{import} closes it: {circle}");
    }
    assert!(!circle.contains("c.rs"), "nobody imports it: {circle}");
    assert!(!circle.contains("mod.rs"), "it only hands names on");
    // A `mod.rs` that uses what it re-exports is a file like any other.
    files[1] = parse(&(
        "m/mod.rs",
        "//! x\nmod a; mod b; pub use b::B; pub struct A(B);",
    ));
    files[2] = parse(&("m/a.rs", "//! x\npub struct C;"));
    let circles = Graph::new(&files).circles("m");
    assert!(
        matches!(circles.as_slice(), [circle] if circle.contains("m/mod.rs → m/b.rs")),
        "{circles:?}"
    );
}

#[test]
fn pure_modules_touch_nothing_of_the_machine() {
    let mut findings = Vec::new();
    for file in sources("src")
        .iter()
        .filter(|file| !file.is_root() && !file.for_tests)
    {
        if !PURE.contains(&file.module[0].as_str()) {
            continue;
        }
        for path in &file.paths {
            let found = IMPURE.iter().find(|(name, _)| {
                begins_with(path, name) || path.split("::").any(|part| part == *name)
            });
            if let Some((_, why)) = found {
                findings.push(format!(
                    "{}: `{path}` in a pure module: {why}",
                    file.shown()
                ));
            }
        }
    }
    report("pure modules reach out", &findings);
}

#[test]
fn the_picture_of_the_actors_shows_the_messages_of_the_code() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    let page = std::fs::read_to_string(page).expect("the page is there");
    let (shown, handled) = (picture::shown(&page), picture::handled(&sources("src")));
    assert!(
        handled.len() > 40,
        "the handlers are not where this test looks"
    );
    let missing = handled.difference(&shown);
    let missing = missing.map(|(actor, message)| format!("{actor} receives {message}: draw it"));
    let wrong = shown.difference(&handled);
    let wrong = wrong.map(|(actor, message)| format!("{actor} does not receive {message}"));
    let unnamed = picture::unnamed(&page).into_iter();
    let unnamed = unnamed.map(|message| format!("`{message}` is in no text"));
    let findings: Vec<String> = missing.chain(wrong).chain(unnamed).collect();
    report(
        "the picture in docs/architecture.md is not that of the code",
        &findings,
    );
}

#[test]
fn the_table_of_behaviours_names_files_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/architecture.md"));
    let page = page.expect("the page is there");
    let (_, table) = page
        .split_once("\n## Where a behaviour is\n")
        .expect("the section is there");
    let (table, _) = table.split_once("\n## ").expect("others follow");
    let rows = table.lines().filter(|line| line.starts_with("| "));
    let files: Vec<&str> = rows
        .filter_map(|row| row.split('|').nth(3))
        .flat_map(|files| files.split('`').skip(1).step_by(2))
        .collect();
    assert!(files.len() > 50, "the table is not where this test looks");
    let missing = files
        .iter()
        .filter(|file| !root.join("src").join(file).exists());
    let findings: Vec<String> = missing.map(|file| format!("src/{file}")).collect();
    report(
        "docs/architecture.md names files that do not exist",
        &findings,
    );
}

/// The example in the source is compiled and run; the one of the page would rot.
#[test]
fn the_loop_around_the_raft_core_is_that_of_the_tested_example() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path| std::fs::read_to_string(root.join(path)).expect("the file is there");
    let (page, source) = (read("docs/architecture.md"), read("src/raft/mod.rs"));
    let (_, shown) = page
        .split_once("**The Raft core and its caller.**")
        .expect("the paragraph is there");
    let (_, shown) = shown.split_once("```rust\n").expect("it has the loop");
    let (shown, _) = shown.split_once("```").expect("the block ends");
    assert!(shown.contains("core.ready()"), "this is not the loop");
    let tested: String = source
        .lines()
        .filter_map(|line| line.strip_prefix("//!"))
        .flat_map(|line| [line.strip_prefix(' ').unwrap_or(line), "\n"])
        .collect();
    assert!(
        tested.contains(shown),
        "docs/architecture.md has another loop than the example in src/raft/mod.rs"
    );
}

#[test]
fn files_are_readable() {
    let mut findings = Vec::new();
    for file in ["src", "crates", "tests", "examples", "benches"]
        .into_iter()
        .flat_map(sources)
    {
        let shown = file.shown();
        if !file.text.starts_with("//!") {
            findings.push(format!(
                "{shown}: begin with `//!`: what it owns and leaves out"
            ));
        }
        let lines = file.text.lines().count();
        if lines > FILE_LINES_MAX {
            findings.push(format!(
                "{shown}: {lines} lines, at most {FILE_LINES_MAX}: split it"
            ));
        }
        for (at, line) in file.text.lines().enumerate() {
            let width = line.chars().count();
            let row = line
                .trim_start()
                .trim_start_matches(['/', '!'])
                .trim_start();
            if width > LINE_WIDTH_MAX && !row.starts_with('|') {
                let place = format!("{shown}:{}", at + 1);
                findings.push(format!(
                    "{place}: {width} wide, at most {LINE_WIDTH_MAX}: wrap it"
                ));
            }
        }
        for name in &file.unfinished {
            findings.push(format!("{shown}: `{name}!`: finish it, or return an error"));
        }
    }
    report("files are hard to read", &findings);
}

#[test]
fn imports_are_grouped_by_root() {
    let files = ["src", "crates", "tests", "examples", "benches"];
    let scattered = files.into_iter().flat_map(sources).flat_map(|file| {
        let roots = imports::scattered(&file.text);
        let finding = |root| format!("{}: several `use` of `{root}`: make them one", file.shown());
        roots.into_iter().map(finding).collect::<Vec<_>>()
    });
    report("imports are scattered", &scattered.collect::<Vec<_>>());
}

#[test]
fn dependencies_have_licences_we_accept() {
    let table = DeTable::parse(DENY).expect("deny.toml is TOML");
    let allow = table
        .get_ref()
        .get("licenses")
        .and_then(|section| section.get_ref().get("allow"));
    let allow = allow
        .and_then(|list| list.get_ref().as_array())
        .expect("licenses.allow");
    let allow: BTreeSet<&str> = allow
        .iter()
        .filter_map(|item| item.get_ref().as_str())
        .collect();
    let mut findings = Vec::new();
    for package in packages() {
        let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
        let (name, licence, source) = (text("name"), text("license"), text("source"));
        if !accepted(&licence, &allow) {
            findings.push(format!("{name}: licence `{licence}` is not in deny.toml"));
        }
        if !source.is_empty() && source != CRATES_IO {
            findings.push(format!(
                "{name}: comes from {source}, which can change under us"
            ));
        }
    }
    report("dependencies we cannot ship", &findings);
}

/// `./check` runs the simulator's tests in a build of their own, and leaves them out of the others by the pattern of their name.
#[test]
fn only_the_simulator_has_a_name_that_check_leaves_out() {
    let check = include_str!("../check");
    assert!(
        check.contains("--lib --bins --test '[!s]*' --test 's[!i]*'"),
        "the pattern changed: change this test with it"
    );
    let ours = packages()
        .into_iter()
        .filter(|package| package["source"].is_null());
    let targets = ours.filter_map(|package| package["targets"].as_array().cloned());
    let tests: Vec<String> = targets
        .flatten()
        .filter(|target| target["kind"][0] == "test")
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect();
    assert!(tests.len() > 10, "cargo lists too few: {tests:?}");
    let left_out: Vec<&String> = tests.iter().filter(|name| name.starts_with("si")).collect();
    assert_eq!(left_out, ["sim"], "the others run nowhere");
    assert!(tests.iter().all(|name| name != "s"), "no pattern has it");
}

#[test]
fn licence_expressions_are_understood() {
    let allow = BTreeSet::from(["MIT", "Zlib"]);
    for good in [
        "MIT",
        "ISC OR MIT",
        "ISC/MIT",
        "(ISC OR MIT) AND Zlib",
        "MIT AND (Zlib OR ISC)",
    ] {
        assert!(
            accepted(good, &allow),
            "{good} leaves us a choice we accept"
        );
    }
    for bad in [
        "",
        "ISC",
        "no licence",
        "MIT AND ISC",
        "MIT WITH LLVM-exception",
        "(ISC OR MIT) AND ISC",
        "ISC OR (MIT AND ISC)",
        "(MIT",
    ] {
        assert!(!accepted(bad, &allow), "{bad} asks for more than we accept");
    }
}

/// The rules would pass in silence if no path were found to hold against them.
#[test]
fn nested_paths_are_found() {
    let text = "//! x\nuse crate::{a::{self, B}, c};\nuse super::d;\n
        #[cfg(test)] mod tests { use crate::no; }
        mod inner { use super::e; fn f() { std::fs::read(crate::g::H); todo!() } }";
    let file = Source::parse(Path::new("x/y.rs"), text);
    let inside = [
        "crate::a",
        "crate::a::B",
        "crate::c",
        "crate::g::H",
        "crate::x::d",
    ];
    for path in inside
        .into_iter()
        .chain(["crate::x::y::e", "std::fs::read"])
    {
        assert!(
            file.paths.contains(path),
            "{path} is missed in {:?}",
            file.paths
        );
    }
    assert!(!file.paths.contains("crate::no"), "tests may use more");
    assert_eq!(file.unfinished, ["todo"]);
}

/// What cargo knows of each package that is built on this machine.
fn packages() -> Vec<serde_json::Value> {
    let run = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        let output = command
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output();
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {complaint}"
        );
        String::from_utf8(output.stdout).expect("tools speak UTF-8")
    };
    let version = run("rustc", &["-vV"]);
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .expect("rustc's host");
    let arguments = [
        "metadata",
        "--locked",
        "--format-version=1",
        "--filter-platform",
        host,
    ];
    let all = run(env!("CARGO"), &arguments);
    let all: serde_json::Value = serde_json::from_str(&all).expect("cargo writes JSON");
    let packages = all["packages"]
        .as_array()
        .expect("cargo lists packages")
        .clone();
    assert!(
        packages.len() > 20,
        "cargo lists too few packages to be all"
    );
    packages
}

/// Whether an SPDX expression can be satisfied with these licences. One that is no valid expression cannot. A licence with an
/// exception (`WITH`) counts as a licence of its own.
fn accepted(expression: &str, allow: &BTreeSet<&str>) -> bool {
    // Older packages write `/` for `OR`.
    let parsed = Expression::parse_mode(expression, ParseMode::LAX);
    parsed
        .is_ok_and(|parsed| parsed.evaluate(|licence| allow.contains(licence.to_string().as_str())))
}

/// Fails with all findings at once.
fn report(what: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{what}:\n  {}", findings.join("\n  "));
}

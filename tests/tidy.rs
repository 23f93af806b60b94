//! The rules of `CONTRIBUTING.md` that a program can check: who may use whom, what pure code stays away from, how files
//! look, which licences we build on. A failure lists every place and says why the rule is there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use syn::visit::Visit;
use toml::de::DeTable;

/// What a module of the crate may use, and why no more. An entry `a::b` admits that part of `a` only.
const MAY_USE: &[(&str, &[&str], &str)] = &[
    ("types", &[], "every layer shares them, so they know none"),
    (
        "clock",
        &["types"],
        "the only reader of time and entropy knows nothing it could bias",
    ),
    (
        "codec",
        &["types"],
        "one way to spell bytes, whatever they mean",
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
        &["types"],
        "it is checked before anything that it configures exists",
    ),
    (
        "raft",
        &["types", "codec", "mutation"],
        "consensus that knows no disk and no store can be simulated",
    ),
    (
        "kv",
        &["types", "codec", "mutation", "fuzzing::generate"],
        "a data model without I/O gives the same bytes on every member",
    ),
    (
        "storage",
        &["types", "codec", "failpoint", "mutation"],
        "it keeps bytes; what they mean is others' business",
    ),
    (
        "net",
        &["types", "clock", "raft", "codec"],
        "peers exchange consensus messages, no more; dialling again takes a clock",
    ),
    (
        "actors",
        &[
            "types",
            "clock",
            "codec",
            "failpoint",
            "raft",
            "kv",
            "storage",
            "net",
        ],
        "actors are glue under the front ends, so they do not know them",
    ),
    (
        "services",
        &["types", "kv", "actors"],
        "locks and elections are recipes on top of the requests that everyone has",
    ),
    (
        "api",
        &[
            "types",
            "clock",
            "failpoint",
            "kv",
            "actors",
            "services",
            "config",
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
            "raft",
            "kv",
            "storage",
            "net",
            "actors",
            "api",
        ],
        "the composition root; the program around it is not its business",
    ),
    (
        "bench",
        &["api::proto"],
        "a client must measure a server through its front door",
    ),
    (
        "local_cluster",
        &["net", "config"],
        "it makes files and starts processes; what they do is theirs",
    ),
    (
        "log",
        &["config"],
        "logging is set up for the program, not for a part of it",
    ),
    (
        "cli",
        &["config", "bench", "net", "local_cluster"],
        "it turns arguments into settings and runs nothing",
    ),
];

/// Modules whose results must follow from their inputs alone.
const PURE: [&str; 3] = ["types", "kv", "raft"];

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
fn files_are_readable() {
    let mut findings = Vec::new();
    for file in ["src", "tests", "examples", "benches"]
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

#[test]
fn licence_expressions_are_understood() {
    let allow = BTreeSet::from(["MIT", "Zlib"]);
    for good in [
        "MIT",
        "X OR MIT",
        "X/MIT",
        "(X OR MIT) AND Zlib",
        "MIT AND (Zlib OR X)",
    ] {
        assert!(
            accepted(good, &allow),
            "{good} leaves us a choice we accept"
        );
    }
    for bad in [
        "",
        "X",
        "MIT AND X",
        "MIT WITH Y",
        "(X OR MIT) AND X",
        "X OR (MIT AND X)",
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

/// One file, and what the rules ask about it.
struct Source {
    path: PathBuf,
    /// Its module, from the crate's root: `kv::index::node` as a list.
    module: Vec<String>,
    text: String,
    /// Whether it is compiled for tests only.
    for_tests: bool,
    /// All paths it uses outside its tests; those into this crate from its root.
    paths: BTreeSet<String>,
    /// Macros that stand for missing code.
    unfinished: Vec<String>,
    /// Modules it declares for tests only.
    test_modules: Vec<Vec<String>>,
}

impl Source {
    fn parse(relative: &Path, text: &str) -> Self {
        let without_extension = relative.with_extension("");
        let parts = without_extension
            .iter()
            .map(|part| part.to_string_lossy().into_owned());
        let mut module: Vec<String> = parts.collect();
        if module.last().is_some_and(|last| last == "mod") {
            module.pop();
        }
        let mut found = Found {
            module: module.clone(),
            ..Found::default()
        };
        let parsed = syn::parse_file(text);
        found.visit_file(&parsed.unwrap_or_else(|error| panic!("{}: {error}", relative.display())));
        Self {
            path: relative.to_owned(),
            module,
            text: text.to_owned(),
            for_tests: false,
            paths: found.paths,
            unfinished: found.unfinished,
            test_modules: found.test_modules,
        }
    }

    /// The crate's root and the program may use all there is.
    fn is_root(&self) -> bool {
        self.module == ["lib"] || self.module == ["main"]
    }

    fn shown(&self) -> String {
        self.path.display().to_string()
    }
}

/// Collects paths while walking a file.
#[derive(Default)]
struct Found {
    module: Vec<String>,
    paths: BTreeSet<String>,
    unfinished: Vec<String>,
    test_modules: Vec<Vec<String>>,
}

impl Found {
    /// Notes a path, with `self`, `super` and `crate` resolved.
    fn note(&mut self, path: &[String]) {
        let here = || std::iter::once("crate".to_owned()).chain(self.module.iter().cloned());
        let mut full: Vec<String> = Vec::new();
        for (at, part) in path.iter().enumerate() {
            match part.as_str() {
                "self" | "super" if at == 0 => full.extend(here()),
                "core" if at == 0 => full.push("std".to_owned()),
                "self" | "super" => {}
                _ => full.push(part.clone()),
            }
            if part == "super" {
                full.pop();
            }
        }
        self.paths.insert(full.join("::"));
    }

    fn walk_use(&mut self, before: &[String], tree: &syn::UseTree) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.walk_use(&with(&path.ident), &path.tree),
            syn::UseTree::Name(name) => self.note(&with(&name.ident)),
            syn::UseTree::Rename(rename) => self.note(&with(&rename.ident)),
            syn::UseTree::Glob(_) => self.note(before),
            syn::UseTree::Group(group) => {
                group
                    .items
                    .iter()
                    .for_each(|item| self.walk_use(before, item));
            }
        }
    }
}

impl<'ast> Visit<'ast> for Found {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.module.push(item.ident.to_string());
        if for_tests(&item.attrs) {
            self.test_modules.push(self.module.clone());
        } else {
            syn::visit::visit_item_mod(self, item);
        }
        self.module.pop();
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !for_tests(&item.attrs) {
            syn::visit::visit_item_fn(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if !for_tests(&item.attrs) {
            self.walk_use(&[], &item.tree);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<String> = path
            .segments
            .iter()
            .map(|part| part.ident.to_string())
            .collect();
        if parts.len() > 1 {
            self.note(&parts);
        }
        syn::visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, found: &'ast syn::Macro) {
        if let Some(name) = found.path.get_ident().map(ToString::to_string)
            && matches!(name.as_str(), "todo" | "unimplemented")
        {
            self.unfinished.push(name);
        }
        syn::visit::visit_macro(self, found);
    }
}

/// Whether attributes say `#[cfg(test)]`.
fn for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let inside = attribute.parse_args::<syn::Path>();
        attribute.path().is_ident("cfg") && inside.is_ok_and(|path| path.is_ident("test"))
    })
}

/// Whether a path is `start` or goes on from it.
fn begins_with(path: &str, start: &str) -> bool {
    path.strip_prefix(start)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// All Rust files of a directory of the package, parsed.
fn sources(dir: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
    let mut paths = Vec::new();
    list(&root, &mut paths);
    paths.sort();
    let parse = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).expect("a listed file is readable");
        Source::parse(
            path.strip_prefix(&root).expect("listed below the root"),
            &text,
        )
    };
    let mut files: Vec<Source> = paths.iter().map(parse).collect();
    let for_tests: Vec<Vec<String>> = files
        .iter()
        .flat_map(|file| file.test_modules.clone())
        .collect();
    for file in &mut files {
        file.for_tests = for_tests
            .iter()
            .any(|module| file.module.starts_with(module));
        file.path = Path::new(dir).join(&file.path);
    }
    assert!(
        dir != "src" || files.len() > 10,
        "the sources are not where this test looks"
    );
    files
}

fn list(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            list(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
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

/// Whether an SPDX expression can be satisfied with these licences. A licence with an exception (`WITH`) counts as a
/// licence of its own.
fn accepted(expression: &str, allow: &BTreeSet<&str>) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let spaced = spaced.replace(" WITH ", "-WITH-");
    let mut words = spaced.split_whitespace().peekable();
    any(&mut words, allow) && words.next().is_none()
}

type Words<'w> = std::iter::Peekable<std::str::SplitWhitespace<'w>>;

fn any(words: &mut Words<'_>, allow: &BTreeSet<&str>) -> bool {
    let mut good = all(words, allow);
    while words.next_if_eq(&"OR").is_some() {
        good |= all(words, allow);
    }
    good
}

fn all(words: &mut Words<'_>, allow: &BTreeSet<&str>) -> bool {
    let mut good = one(words, allow);
    while words.next_if_eq(&"AND").is_some() {
        good &= one(words, allow);
    }
    good
}

fn one(words: &mut Words<'_>, allow: &BTreeSet<&str>) -> bool {
    match words.next() {
        Some("(") => any(words, allow) & words.next_if_eq(&")").is_some(),
        Some(licence) => allow.contains(licence),
        None => false,
    }
}

/// Fails with all findings at once.
fn report(what: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{what}:\n  {}", findings.join("\n  "));
}

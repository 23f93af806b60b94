//! The package's source files, and what each of them imports, defines and hands on.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};
use syn::visit::Visit;

/// One file, and what the rules ask about it.
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    /// Its module, from the crate's root: `kv::index::node` as a list.
    pub(crate) module: Vec<String>,
    pub(crate) text: String,
    /// Whether it is compiled for tests only.
    pub(crate) for_tests: bool,
    /// All paths it uses outside its tests; those into this crate from its root.
    pub(crate) paths: BTreeSet<String>,
    /// Macros that stand for missing code.
    pub(crate) unfinished: Vec<String>,
    /// Modules it declares for tests only.
    pub(crate) test_modules: Vec<Vec<String>>,
    /// The paths into this crate that it uses itself: all but those to children that it only hands on.
    pub(crate) imports: BTreeSet<String>,
    /// Names of its items.
    pub(crate) defines: BTreeSet<String>,
    /// Names that it hands on, with the paths behind them; and modules whose names it hands on.
    pub(crate) reexports: BTreeMap<String, String>,
    pub(crate) glob_reexports: BTreeSet<String>,
}

impl Source {
    pub(crate) fn parse(relative: &Path, text: &str) -> Self {
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
        let parsed = parsed.unwrap_or_else(|error| panic!("{}: {error}", relative.display()));
        found.children = declared(&parsed.items);
        found.visit_file(&parsed);
        let own = [&["crate".to_owned()], module.as_slice()]
            .concat()
            .join("::");
        let handed_on = found.reexports.iter();
        let used_too = handed_on.filter(|(name, _)| found.names.contains(*name));
        let imports = used_too.map(|(_, path)| path.clone());
        let imports = imports.chain(found.paths.difference(&found.only_handed_on).cloned());
        let imports: BTreeSet<String> = imports.filter(|path| *path != own).collect();
        Self {
            path: relative.to_owned(),
            module,
            text: text.to_owned(),
            for_tests: false,
            paths: found.paths,
            unfinished: found.unfinished,
            test_modules: found.test_modules,
            imports,
            defines: defined(&parsed.items),
            reexports: found.reexports,
            glob_reexports: found.glob_reexports,
        }
    }

    /// The crate's root and the program may use all there is.
    pub(crate) fn is_root(&self) -> bool {
        [["lib"], ["ext"], ["main"]]
            .iter()
            .any(|root| self.module == *root)
    }

    pub(crate) fn shown(&self) -> String {
        self.path.display().to_string()
    }

    /// Its module from `crate` on.
    pub(crate) fn full_module(&self) -> String {
        if self.module == ["lib"] {
            return "crate".to_owned();
        }
        let parts = std::iter::once("crate").chain(self.module.iter().map(String::as_str));
        parts.collect::<Vec<_>>().join("::")
    }
}

/// Names of the modules that items declare.
fn declared(items: &[syn::Item]) -> BTreeSet<String> {
    let modules = items.iter().filter_map(|item| match item {
        syn::Item::Mod(module) => Some(module.ident.to_string()),
        _ => None,
    });
    modules.collect()
}

/// Names of the items that can be imported.
fn defined(items: &[syn::Item]) -> BTreeSet<String> {
    let names = items.iter().filter_map(|item| match item {
        syn::Item::Const(item) => Some(&item.ident),
        syn::Item::Enum(item) => Some(&item.ident),
        syn::Item::Fn(item) => Some(&item.sig.ident),
        syn::Item::Static(item) => Some(&item.ident),
        syn::Item::Struct(item) => Some(&item.ident),
        syn::Item::Trait(item) => Some(&item.ident),
        syn::Item::Type(item) => Some(&item.ident),
        _ => None,
    });
    names.map(ToString::to_string).collect()
}

/// Collects paths while walking a file.
#[derive(Default)]
struct Found {
    module: Vec<String>,
    paths: BTreeSet<String>,
    unfinished: Vec<String>,
    test_modules: Vec<Vec<String>>,
    /// Modules that this file declares.
    children: BTreeSet<String>,
    /// The first names of all paths in code.
    names: BTreeSet<String>,
    reexports: BTreeMap<String, String>,
    glob_reexports: BTreeSet<String>,
    /// Paths to this file's own children that occur in a `pub use`, and nowhere else.
    only_handed_on: BTreeSet<String>,
}

impl Found {
    /// Notes a path, with `self`, `super` and `crate` resolved.
    fn note(&mut self, path: &[String]) {
        let full = self.resolve(path);
        self.only_handed_on.remove(&full);
        self.paths.insert(full);
    }

    fn resolve(&self, path: &[String]) -> String {
        let here = || std::iter::once("crate".to_owned()).chain(self.module.iter().cloned());
        let mut full: Vec<String> = Vec::new();
        for (at, part) in path.iter().enumerate() {
            match part.as_str() {
                "self" | "super" if at == 0 => full.extend(here()),
                child if at == 0 && self.children.contains(child) => {
                    full.extend(here());
                    full.push(child.to_owned());
                }
                "core" if at == 0 => full.push("std".to_owned()),
                "self" | "super" => {}
                _ => full.push(part.clone()),
            }
            if part == "super" {
                full.pop();
            }
        }
        full.join("::")
    }

    fn walk_use(&mut self, public: bool, before: &[String], tree: &syn::UseTree) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.walk_use(public, &with(&path.ident), &path.tree),
            syn::UseTree::Name(name) => self.import(public, &with(&name.ident), &name.ident),
            syn::UseTree::Rename(name) => self.import(public, &with(&name.ident), &name.rename),
            syn::UseTree::Glob(_) if public => {
                let module = self.hand_on(before);
                self.glob_reexports.insert(module);
            }
            syn::UseTree::Glob(_) => self.note(before),
            syn::UseTree::Group(group) => {
                let items = group.items.iter();
                items.for_each(|item| self.walk_use(public, before, item));
            }
        }
    }

    fn import(&mut self, public: bool, path: &[String], name: &syn::Ident) {
        if public {
            let full = self.hand_on(path);
            self.reexports.insert(name.to_string(), full);
        } else {
            self.note(path);
        }
    }

    /// Notes a path in a `pub use`. What a file hands on from its own children it need not use itself.
    fn hand_on(&mut self, path: &[String]) -> String {
        let full = self.resolve(path);
        let own = self.resolve(&["self".to_owned()]);
        if self.paths.insert(full.clone()) && begins_with(&full, &own) {
            self.only_handed_on.insert(full.clone());
        }
        full
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
            let public = !matches!(item.vis, syn::Visibility::Inherited);
            self.walk_use(public, &[], &item.tree);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if !for_tests(&item.attrs) {
            syn::visit::visit_item_impl(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !for_tests(&item.attrs) {
            syn::visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<String> = path
            .segments
            .iter()
            .map(|part| part.ident.to_string())
            .collect();
        self.names.extend(parts.first().cloned());
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
pub(crate) fn begins_with(path: &str, start: &str) -> bool {
    path.strip_prefix(start)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// All Rust files of a directory of the package, parsed.
pub(crate) fn sources(dir: &str) -> Vec<Source> {
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

//! Which files of a module import each other in a circle.
//!
//! A file is a node of a graph, and an import is an edge to the file that defines the imported name: a name that a `mod.rs` only
//! hands on leads to the file behind it. So a `mod.rs` that declares and re-exports its children is in no circle, and one that
//! defines what its children use is in one only if it uses them as well.

use super::source::{Source, begins_with};
use std::collections::{BTreeMap, BTreeSet};

/// How many re-exports in a row are followed.
const REEXPORTS_MAX: usize = 8;

/// The files of the crate and who imports whom.
pub(crate) struct Graph<'a> {
    files: Vec<&'a Source>,
    /// A file's number by its module, from `crate` on.
    by_module: BTreeMap<String, usize>,
    /// For each file, the files it imports and the first path by which it does.
    imports: Vec<BTreeMap<usize, String>>,
}

impl<'a> Graph<'a> {
    pub(crate) fn new(files: &'a [Source]) -> Self {
        let files: Vec<&Source> = files.iter().filter(|file| !file.for_tests).collect();
        let numbered = files.iter().enumerate();
        let by_module = numbered.map(|(at, file)| (file.full_module(), at));
        let mut graph = Self {
            by_module: by_module.collect(),
            imports: Vec::new(),
            files,
        };
        graph.imports = (0..graph.files.len())
            .map(|at| graph.imports_of(at))
            .collect();
        graph
    }

    fn imports_of(&self, at: usize) -> BTreeMap<usize, String> {
        let mut imports = BTreeMap::new();
        for path in &self.files[at].imports {
            let target = self.file_of(path, REEXPORTS_MAX);
            if let Some(target) = target.filter(|target| *target != at) {
                imports.entry(target).or_insert_with(|| path.clone());
            }
        }
        imports
    }

    /// The file that defines what a path leads to.
    fn file_of(&self, path: &str, reexports_left: usize) -> Option<usize> {
        let mut module = path;
        let at = loop {
            match self.by_module.get(module) {
                Some(at) => break *at,
                None => module = module.rsplit_once("::")?.0,
            }
        };
        let file = self.files[at];
        let Some(rest) = path[module.len()..].strip_prefix("::") else {
            return Some(at);
        };
        let (name, after) = rest.split_once("::").unwrap_or((rest, ""));
        if reexports_left == 0 || file.defines.contains(name) {
            return Some(at);
        }
        let join = |target: &str| [target, after].join("::").trim_end_matches(':').to_owned();
        if let Some(target) = file.reexports.get(name) {
            return self.file_of(&join(target), reexports_left - 1);
        }
        let globs = file.glob_reexports.iter();
        let mut behind = globs.filter_map(|glob| {
            let target = self.file_of(&format!("{glob}::{name}"), reexports_left - 1)?;
            let defines = self.files[target].defines.contains(name);
            defines.then_some(target)
        });
        behind.next().or(Some(at))
    }

    /// The circles in one module of the crate, each with the imports that close it.
    pub(crate) fn circles(&self, module: &str) -> Vec<String> {
        let root = format!("crate::{module}");
        let own = |at: &usize| begins_with(&self.files[*at].full_module(), &root);
        let files: Vec<usize> = (0..self.files.len()).filter(own).collect();
        let reached: BTreeMap<usize, BTreeSet<usize>> = files
            .iter()
            .map(|&at| (at, self.reached_from(at, &own)))
            .collect();
        let mut circles = Vec::new();
        let mut found = BTreeSet::new();
        for &at in files.iter().filter(|at| reached[at].contains(at)) {
            let circle: BTreeSet<usize> = files
                .iter()
                .copied()
                .filter(|other| reached[&at].contains(other) && reached[other].contains(&at))
                .collect();
            if found.insert(circle.clone()) {
                circles.push(self.shown(&circle));
            }
        }
        circles
    }

    fn reached_from(&self, at: usize, own: &impl Fn(&usize) -> bool) -> BTreeSet<usize> {
        let mut reached = BTreeSet::new();
        let mut next = vec![at];
        while let Some(file) = next.pop() {
            let imports = self.imports[file].keys().copied();
            next.extend(imports.filter(|to| own(to) && reached.insert(*to)));
        }
        reached
    }

    fn shown(&self, circle: &BTreeSet<usize>) -> String {
        let name = |at: usize| self.files[at].shown();
        let mut lines = vec![format!("{} files:", circle.len())];
        for &from in circle {
            for (to, path) in &self.imports[from] {
                if circle.contains(to) {
                    lines.push(format!("    {} → {}: `{path}`", name(from), name(*to)));
                }
            }
        }
        lines.join("\n")
    }
}

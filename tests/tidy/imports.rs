//! How a file writes its imports: one `use` for each root, so that a reader finds all that comes from a place together, and two
//! changes of the same imports do not differ by style.

use std::collections::BTreeSet;
use syn::visit::Visit;

/// The roots that a module of `text` imports by more than one `use`. A glob, and `super::super`, may stand beside the others.
pub(crate) fn scattered(text: &str) -> Vec<String> {
    let mut found = Scattered::default();
    let parsed = syn::parse_file(text).expect("the compiler has read it");
    found.module(&parsed.items);
    found.visit_file(&parsed);
    found.roots
}

#[derive(Default)]
struct Scattered {
    roots: Vec<String>,
}

impl Scattered {
    /// Looks at the items of one module. Imports with attributes, or with another visibility, are apart from the others.
    fn module(&mut self, items: &[syn::Item]) {
        let mut seen = BTreeSet::new();
        for item in items {
            let syn::Item::Use(item) = item else { continue };
            if !item.attrs.is_empty() {
                continue;
            }
            let root = format!("{}{}", visibility(&item.vis), root(&item.tree));
            if !seen.insert(root.clone()) {
                self.roots.push(root);
            }
        }
    }
}

impl<'ast> Visit<'ast> for Scattered {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if let Some((_, items)) = &module.content {
            self.module(items);
        }
        syn::visit::visit_item_mod(self, module);
    }
}

fn root(tree: &syn::UseTree) -> String {
    match tree {
        syn::UseTree::Path(path) if path.ident == "super" => match &*path.tree {
            syn::UseTree::Glob(_) => "super::*".to_owned(),
            syn::UseTree::Path(next) if next.ident == "super" => {
                format!("super::{}", root(&path.tree))
            }
            _ => "super".to_owned(),
        },
        syn::UseTree::Path(path) => match &*path.tree {
            syn::UseTree::Glob(_) => format!("{}::*", path.ident),
            _ => path.ident.to_string(),
        },
        syn::UseTree::Name(name) => name.ident.to_string(),
        syn::UseTree::Rename(rename) => rename.ident.to_string(),
        syn::UseTree::Glob(_) | syn::UseTree::Group(_) => String::new(),
    }
}

fn visibility(visibility: &syn::Visibility) -> &'static str {
    match visibility {
        syn::Visibility::Public(_) => "pub ",
        syn::Visibility::Restricted(_) => "pub(…) ",
        syn::Visibility::Inherited => "",
    }
}

#[test]
fn scattered_imports_are_found() {
    let table = [
        ("use std::a; use std::b;", vec!["std"]),
        ("use std::{a, b}; use crate::c; pub use crate::d;", vec![]),
        ("use super::*; use super::a; use super::super::b;", vec![]),
        ("mod m { use super::a; use super::b; }", vec!["super"]),
        ("#[cfg(test)] use std::a; use std::b;", vec![]),
    ];
    for (text, expected) in table {
        assert_eq!(scattered(text), expected, "{text}");
    }
}

//! Files of one layer do not import each other in circles, so that each can be read after those that it uses.
//!
//! Reads every path of every source file with `syn`. A path leads to the file that defines the item, through re-exports. A module may
//! use items of the modules that it is a part of (`super`): a folder and its `mod.rs` are one module.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use proc_macro2::{TokenStream, TokenTree};
use syn::{UseTree, visit::Visit};

type ModulePath = Vec<String>;

/// What one file imports. Paths are relative to the root of the crate.
#[derive(Default)]
struct SourceFile {
    uses: BTreeSet<ModulePath>,
    /// Names that the file itself imports, and from where: submodules and, for `pub use`, other files find them here.
    imported: BTreeMap<String, ModulePath>,
}

/// Collects the paths of one file.
struct PathReader<'a> {
    module: &'a [String],
    modules: &'a BTreeSet<ModulePath>,
    /// Paths as written.
    paths: BTreeSet<ModulePath>,
    file: SourceFile,
}

impl PathReader<'_> {
    /// The path from the root of the crate; `None` for paths to other crates and to local names.
    fn absolute(&self, path: &[String]) -> Option<ModulePath> {
        let mut base = self.module.to_vec();
        let rest = match path.first()?.as_str() {
            "crate" => {
                base.clear();
                &path[1..]
            }
            "self" => &path[1..],
            "super" => {
                let levels = path.iter().take_while(|segment| *segment == "super").count();
                base.truncate(base.len().saturating_sub(levels));
                &path[levels..]
            }
            first => {
                base.push(first.to_owned());
                if !self.modules.contains(&base) {
                    base.clone_from(self.file.imported.get(first)?);
                }
                &path[1..]
            }
        };
        base.extend(rest.iter().cloned());
        Some(base)
    }

    fn record(&mut self, path: &[String]) {
        if path.len() > 1 {
            self.paths.insert(path.to_vec());
        }
    }

    /// What the file uses, now that all its imports are known: a path may begin with an imported module.
    fn finish(mut self) -> SourceFile {
        let found: Vec<ModulePath> = self.paths.iter().filter_map(|path| self.absolute(path)).collect();
        self.file.uses.extend(found);
        self.file
    }

    fn import(&mut self, tree: &UseTree, prefix: &[String]) {
        let with = |name: &syn::Ident| [prefix, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.import(&path.tree, &with(&path.ident)),
            UseTree::Group(group) => group.items.iter().for_each(|item| self.import(item, prefix)),
            UseTree::Name(name) if name.ident == "self" => self.bind(prefix.last().cloned(), prefix),
            UseTree::Name(name) => self.bind(Some(name.ident.to_string()), &with(&name.ident)),
            UseTree::Rename(rename) if rename.ident == "self" => self.bind(Some(rename.rename.to_string()), prefix),
            UseTree::Rename(rename) => self.bind(Some(rename.rename.to_string()), &with(&rename.ident)),
            UseTree::Glob(_) => {}
        }
    }

    fn bind(&mut self, name: Option<String>, path: &[String]) {
        let Some((name, path)) = name.zip(self.absolute(path)) else { return };
        self.file.uses.insert(path.clone());
        self.file.imported.insert(name, path);
    }

    /// Paths in the arguments of macros, which `syn` does not parse.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(name) => {
                    if colons != 2 {
                        self.record(&path);
                        path.clear();
                    }
                    path.push(name.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                other => {
                    self.record(&path);
                    path.clear();
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.tokens(group.stream());
                    }
                }
            }
        }
        self.record(&path);
    }
}

impl<'ast> Visit<'ast> for PathReader<'_> {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.import(&item.tree, &[]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.record(&segments);
        syn::visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.tokens(call.tokens.clone());
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let is_test = item.attrs.iter().any(|attribute| {
            attribute.path().is_ident("cfg")
                && attribute.parse_args::<syn::Path>().is_ok_and(|what| what.is_ident("test"))
        });
        if !is_test {
            syn::visit::visit_item_mod(self, item);
        }
    }
}

/// The modules of a crate, by path, with the text of their files.
pub fn read_modules(src: &Path) -> BTreeMap<ModulePath, String> {
    fn walk(dir: &Path, module: &[String], modules: &mut BTreeMap<ModulePath, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let child = [module, std::slice::from_ref(&name)].concat();
            if path.is_dir() {
                walk(&path, &child, modules);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let at = if ["mod", "lib"].contains(&name.as_str()) { module.to_vec() } else { child };
                let is_test = at.iter().any(|part| part == "tests" || part.ends_with("_tests"));
                if !is_test && name != "main" {
                    modules.insert(at, text);
                }
            }
        }
    }
    let mut modules = BTreeMap::new();
    walk(src, &[], &mut modules);
    modules
}

/// The module that defines the item of this path, through re-exports. A path to a module itself is no use of its file.
fn definition(files: &BTreeMap<ModulePath, SourceFile>, path: &[String], depth: usize) -> Option<ModulePath> {
    let mut length = 0;
    while length < path.len() && files.contains_key(&path[..=length]) {
        length += 1;
    }
    let (module, item) = (&path[..length], path.get(length)?);
    match files.get(module)?.imported.get(item) {
        Some(elsewhere) if depth < 8 => definition(files, &[elsewhere, &path[length + 1..]].concat(), depth + 1),
        _ => Some(module.to_vec()),
    }
}

/// The paths that each module uses, as written, from the root of the crate.
pub fn written_uses(modules: &BTreeMap<ModulePath, String>) -> BTreeMap<ModulePath, BTreeSet<ModulePath>> {
    read_files(modules).into_iter().map(|(module, file)| (module, file.uses)).collect()
}

fn read_files(modules: &BTreeMap<ModulePath, String>) -> BTreeMap<ModulePath, SourceFile> {
    let names: BTreeSet<ModulePath> = modules.keys().cloned().collect();
    let mut files = BTreeMap::new();
    for (module, text) in modules {
        let parsed = syn::parse_file(text).unwrap_or_else(|error| panic!("{}: {error}", module.join("::")));
        let mut reader = PathReader { module, modules: &names, paths: BTreeSet::new(), file: SourceFile::default() };
        reader.visit_file(&parsed);
        files.insert(module.clone(), reader.finish());
    }
    files
}

/// Which module uses which, without uses of a module that the user is a part of.
fn dependencies(modules: &BTreeMap<ModulePath, String>) -> BTreeMap<ModulePath, BTreeSet<ModulePath>> {
    let files = read_files(modules);
    let used_by = |(module, file): (&ModulePath, &SourceFile)| {
        let used = file.uses.iter().filter_map(|path| definition(&files, path, 0));
        (module.clone(), used.filter(|used| !module.starts_with(used)).collect())
    };
    files.iter().map(used_by).collect()
}

/// Pairs of modules that reach each other.
fn circles(dependencies: &BTreeMap<ModulePath, BTreeSet<ModulePath>>) -> Vec<String> {
    let reach = |from: &ModulePath| {
        let (mut reached, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(module) = open.pop() {
            for used in dependencies.get(module).into_iter().flatten() {
                if reached.insert(used.clone()) {
                    open.push(used);
                }
            }
        }
        reached
    };
    let reached: BTreeMap<&ModulePath, BTreeSet<ModulePath>> =
        dependencies.keys().map(|module| (module, reach(module))).collect();
    let direct = dependencies.iter().flat_map(|(module, used)| used.iter().map(move |used| (module, used)));
    direct
        .filter(|(module, used)| reached.get(used).is_some_and(|back| back.contains(*module)))
        .map(|(module, used)| format!("{} uses {}", module.join("::"), used.join("::")))
        .collect()
}

#[test]
fn files_do_not_import_each_other_in_circles() {
    let modules = read_modules(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    assert!(modules.len() > 200, "the sources were not found");
    let dependencies = dependencies(&modules);
    assert!(dependencies.values().map(BTreeSet::len).sum::<usize>() > 1000, "the imports were not found");
    let found = circles(&dependencies);
    assert!(found.is_empty(), "import circles:\n{}", found.join("\n"));
}

#[test]
fn a_circle_is_found_through_a_re_export_a_macro_and_a_child_module() {
    let modules = |files: &[(&str, &str)]| -> BTreeMap<ModulePath, String> {
        let path = |module: &str| module.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect();
        files.iter().map(|(module, text)| (path(module), (*text).to_owned())).collect()
    };
    let circular = |files: &[(&str, &str)]| circles(&dependencies(&modules(files)));
    let face = ("a", "mod b; mod c; pub use b::B;");
    assert_eq!(
        circular(&[
            ("", "mod a;"),
            face,
            ("a::b", "use super::c::C; pub struct B;"),
            ("a::c", "use crate::a::B; pub struct C;")
        ]),
        ["a::b uses a::c", "a::c uses a::b"]
    );
    assert_eq!(
        circular(&[
            ("", ""),
            face,
            ("a::b", "fn f() { println!(\"{}\", super::c::f(1)); }"),
            ("a::c", "fn f() { super::b::f() }")
        ]),
        ["a::b uses a::c", "a::c uses a::b"]
    );
    assert_eq!(
        circular(&[
            ("", ""),
            face,
            ("a::b", "use super::c; fn f() { c::f() }"),
            ("a::c", "pub fn f() -> super::b::B { B }")
        ]),
        ["a::b uses a::c", "a::c uses a::b"]
    );
    // A test may use both, and a submodule its parent.
    assert!(
        circular(&[
            ("", ""),
            ("a", "mod b; pub struct A; fn f() { b::f() }"),
            ("a::b", "use super::A; pub fn f() {}\n#[cfg(test)] mod tests { use crate::c::C; }"),
            ("c", "use crate::a::b::f; pub struct C;"),
        ])
        .is_empty()
    );
}

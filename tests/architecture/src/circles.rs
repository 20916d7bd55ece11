//! Which file of a crate takes names from which other, and the circles among them.
//!
//! A file takes from the file that *defines* what it names: a re-export is followed to its end. A module that
//! declares another, or that hands its names on, does not take from it by that alone. What is called as a
//! method has no path, so a call of it is not seen. Code under `cfg(test)` is left out. Of two modules of one
//! name, from which a feature chooses, the first stands for both where they are named.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{TokenStream, TokenTree};
use syn::{
    Attribute, Expr, Item, ItemMod, ItemUse, Lit, Macro, Meta, MetaNameValue, UseTree, Visibility,
    visit::{self, Visit},
};

/// The files that a file takes from, with the names that it takes.
pub(crate) type Graph = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// Sources by their path from the folder of a crate's sources, such as `store/settle.rs`.
pub(crate) type Sources = BTreeMap<String, String>;

/// The graph of the crates whose roots are these files: a program's and a library's, or one of them.
///
/// # Panics
/// Where a module's file is not there or cannot be parsed, and where a file is in no module.
pub(crate) fn graph(sources: &Sources, roots: &[&str]) -> Graph {
    let mut graph = Graph::new();
    let mut tests = BTreeSet::new();
    for root in roots {
        let mut house = House { sources, modules: Vec::new(), tests: BTreeSet::new() };
        let (file, items) = house.parsed((*root).to_owned());
        house.module(&file, "", None, items);
        for (this, module) in house.modules.iter().enumerate() {
            let from = graph.entry(module.file.clone()).or_default();
            for (file, name) in house.taken(this).into_iter().filter(|(file, _)| *file != module.file) {
                from.entry(file).or_default().insert(name);
            }
        }
        tests.append(&mut house.tests);
    }
    let is_seen = |file: &String| graph.contains_key(file) || tests.iter().any(|test| is_within(file, test));
    let unseen: Vec<_> = sources.keys().filter(|file| !is_seen(file)).collect();
    assert!(unseen.is_empty(), "no module of {roots:?} is in {unseen:?}");
    graph
}

/// The circles: sets of files of which each takes from each other, by way of others or at once.
pub(crate) fn circles(graph: &Graph) -> Vec<BTreeSet<String>> {
    let reached: BTreeMap<_, _> = graph.keys().map(|file| (file, reached(graph, file))).collect();
    let circle = |file: &String| -> BTreeSet<String> {
        reached[file].iter().filter(|other| reached[other].contains(file)).cloned().collect()
    };
    let circles: BTreeSet<_> = graph.keys().map(circle).filter(|circle| !circle.is_empty()).collect();
    circles.into_iter().collect()
}

/// A circle in words: who takes what from whom.
pub(crate) fn describe(graph: &Graph, circle: &BTreeSet<String>) -> String {
    let mut lines = Vec::new();
    for file in circle {
        for (other, names) in graph[file].iter().filter(|(other, _)| circle.contains(*other)) {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            lines.push(format!("  {file} takes {} from {other}", names.join(", ")));
        }
    }
    lines.join("\n")
}

fn reached(graph: &Graph, file: &str) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&String> = graph[file].keys().collect();
    while let Some(file) = next.pop() {
        if reached.insert(file.clone()) {
            next.extend(graph[file].keys());
        }
    }
    reached
}

/// Whether the file is the one of a module, or of something within it.
fn is_within(file: &str, module: &str) -> bool {
    file.strip_prefix(module.trim_end_matches("/mod.rs").trim_end_matches(".rs"))
        .is_some_and(|rest| rest.starts_with(['/', '.']))
}

struct House<'a> {
    sources: &'a Sources,
    modules: Vec<Module>,
    /// The files of modules that are for tests only.
    tests: BTreeSet<String>,
}

struct Module {
    file: String,
    parent: Option<usize>,
    children: BTreeMap<String, usize>,
    /// What is defined here.
    items: BTreeSet<String>,
    imports: Vec<Import>,
    /// What is named here otherwise.
    paths: BTreeSet<Vec<String>>,
}

struct Import {
    path: Vec<String>,
    /// What it is called here; nothing where it is all that a module has.
    name: Option<String>,
    /// It is handed on.
    is_public: bool,
}

/// What a path comes to.
enum Target {
    Module(usize),
    /// What is defined in this module.
    Item(usize),
}

impl House<'_> {
    fn parsed(&self, file: String) -> (String, Vec<Item>) {
        let source = self.sources.get(&file).unwrap_or_else(|| panic!("{file} is not there"));
        let parsed = syn::parse_file(source).unwrap_or_else(|error| panic!("{file}: {error}"));
        (file, parsed.items)
    }

    /// Takes in a module: `folder` is where the files of its children are.
    fn module(&mut self, file: &str, folder: &str, parent: Option<usize>, items: Vec<Item>) -> usize {
        let this = self.modules.len();
        let mut names = Names { items: BTreeSet::new(), imports: Vec::new(), paths: BTreeSet::new() };
        let mut inner = Vec::new();
        for item in items {
            if is_test(attributes(&item)) {
                if let Item::Mod(ItemMod { ident, content: None, .. }) = item {
                    self.tests.insert(self.file_of(folder, &ident.to_string()));
                }
                continue;
            }
            match item {
                Item::Mod(module) => inner.push(module),
                item => {
                    names.items.extend(name_of(&item));
                    names.visit_item(&item);
                }
            }
        }
        let Names { items, imports, paths } = names;
        let file = file.to_owned();
        self.modules.push(Module {
            file: file.clone(),
            parent,
            children: BTreeMap::new(),
            items,
            imports,
            paths,
        });
        for ItemMod { ident, content, attrs, .. } in inner {
            let name = ident.to_string();
            let child = match (content, path_of(&attrs)) {
                (Some((_, items)), _) => self.module(&file, &format!("{folder}{name}/"), Some(this), items),
                (None, Some(path)) => {
                    let beside = file.rfind('/').map_or("", |slash| &file[..=slash]);
                    let (file, items) = self.parsed(format!("{beside}{path}"));
                    self.module(&file, beside, Some(this), items)
                }
                (None, None) => {
                    let (file, items) = self.parsed(self.file_of(folder, &name));
                    self.module(&file, &format!("{folder}{name}/"), Some(this), items)
                }
            };
            self.modules[this].children.entry(name).or_insert(child);
        }
        this
    }

    fn file_of(&self, folder: &str, name: &str) -> String {
        let file = format!("{folder}{name}.rs");
        if self.sources.contains_key(&file) { file } else { format!("{folder}{name}/mod.rs") }
    }

    /// The files that a module takes from, and the names.
    fn taken(&self, this: usize) -> Vec<(String, String)> {
        let module = &self.modules[this];
        let mut taken = Vec::new();
        let is_named = |name: &str| module.paths.iter().any(|path| path[0] == name);
        for Import { path, name, is_public } in &module.imports {
            match name {
                Some(name) if !is_public || is_named(name) => taken.extend(self.end(this, path)),
                Some(_) => {}
                None => {
                    let named = module.paths.iter().map(|path| &path[0]).filter(|name| !module.has(name));
                    let all = named.map(|name| joined(path, name));
                    taken.extend(all.filter_map(|path| match self.resolve(this, &path, &mut Vec::new()) {
                        Some(Target::Item(_)) => self.end(this, &path),
                        _ => None,
                    }));
                }
            }
        }
        for path in module.paths.iter().filter(|path| path.len() > 1) {
            let first = path[0].as_str();
            if ["crate", "self", "super"].contains(&first) || module.children.contains_key(first) {
                taken.extend(self.end(this, path));
            }
        }
        taken
    }

    /// The file that a path leads to, and the last name of it.
    fn end(&self, this: usize, path: &[String]) -> Option<(String, String)> {
        // A method, a variant or the name of a macro's making is of the last thing that is known.
        (1..=path.len()).rev().find_map(|length| {
            let target = self.resolve(this, &path[..length], &mut Vec::new())?;
            let (Target::Module(end) | Target::Item(end)) = target;
            // A way up by itself names nothing: what came after it is not of this crate.
            (length == path.len() || path[length - 1] != "super" && path[length - 1] != "crate")
                .then(|| (self.modules[end].file.clone(), path[length - 1].clone()))
        })
    }

    /// `visited` has the imports that are being followed, since names may be imported in a circle.
    fn resolve(&self, this: usize, path: &[String], visited: &mut Vec<(usize, String)>) -> Option<Target> {
        let mut at = this;
        for (n, name) in path.iter().enumerate() {
            match name.as_str() {
                "crate" => at = 0,
                "self" => {}
                "super" => at = self.modules[at].parent?,
                name => match self.named(at, name, visited)? {
                    Target::Module(module) => at = module,
                    item @ Target::Item(_) => return (n + 1 == path.len()).then_some(item),
                },
            }
        }
        Some(Target::Module(at))
    }

    /// What a name means within a module.
    fn named(&self, at: usize, name: &str, visited: &mut Vec<(usize, String)>) -> Option<Target> {
        let module = &self.modules[at];
        if let Some(child) = module.children.get(name) {
            return Some(Target::Module(*child));
        }
        if module.items.contains(name) {
            return Some(Target::Item(at));
        }
        if visited.contains(&(at, name.to_owned())) {
            return None;
        }
        visited.push((at, name.to_owned()));
        let found = module.imports.iter().find_map(|import| match &import.name {
            Some(own) if own == name => self.resolve(at, &import.path, visited),
            Some(_) => None,
            None => self.resolve(at, &joined(&import.path, name), visited),
        });
        visited.pop();
        found
    }
}

impl Module {
    fn has(&self, name: &str) -> bool {
        self.items.contains(name)
            || self.children.contains_key(name)
            || self.imports.iter().any(|import| import.name.as_deref() == Some(name))
    }
}

/// What is named in a module, its children left out.
struct Names {
    items: BTreeSet<String>,
    imports: Vec<Import>,
    paths: BTreeSet<Vec<String>>,
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let is_public = !matches!(item.vis, Visibility::Inherited);
        flatten(&item.tree, &mut Vec::new(), is_public, &mut self.imports);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.paths.insert(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }

    /// `pub(in path)` takes nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    /// Documentation may link to whatever it wants.
    fn visit_attribute(&mut self, _: &'ast Attribute) {}
}

impl Names {
    /// The paths in what a macro is given, which may be anything.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(name) => {
                    if colons != 2 {
                        self.paths.extend((!path.is_empty()).then(|| std::mem::take(&mut path)));
                    }
                    path.push(name.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                other => {
                    self.paths.extend((!path.is_empty()).then(|| std::mem::take(&mut path)));
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.tokens(group.stream());
                    }
                }
            }
        }
        self.paths.extend((!path.is_empty()).then_some(path));
    }
}

fn flatten(tree: &UseTree, path: &mut Vec<String>, is_public: bool, imports: &mut Vec<Import>) {
    let import = |path: Vec<String>, name| Import { path, name, is_public };
    match tree {
        UseTree::Path(part) => {
            path.push(part.ident.to_string());
            flatten(&part.tree, path, is_public, imports);
            path.pop();
        }
        UseTree::Name(part) if part.ident == "self" => {
            imports.push(import(path.clone(), path.last().cloned()));
        }
        UseTree::Name(part) => {
            let name = part.ident.to_string();
            imports.push(import(joined(path, &name), Some(name)));
        }
        UseTree::Rename(part) => {
            let path = joined(path, &part.ident.to_string());
            imports.push(import(path, Some(part.rename.to_string())));
        }
        UseTree::Glob(_) => imports.push(import(path.clone(), None)),
        UseTree::Group(group) => {
            group.items.iter().for_each(|tree| flatten(tree, path, is_public, imports));
        }
    }
}

fn joined(path: &[String], name: &str) -> Vec<String> {
    path.iter().cloned().chain([name.to_owned()]).collect()
}

fn name_of(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(name.to_string())
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// The file that a module names by itself.
fn path_of(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find(|attribute| attribute.path().is_ident("path")).and_then(|attribute| {
        let Meta::NameValue(MetaNameValue { value: Expr::Lit(value), .. }) = &attribute.meta else {
            return None;
        };
        let Lit::Str(path) = &value.lit else { return None };
        Some(path.value())
    })
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(files: &[(&str, &str)]) -> Sources {
        files.iter().map(|(file, source)| ((*file).to_owned(), (*source).to_owned())).collect()
    }

    fn found(files: &[(&str, &str)]) -> Vec<Vec<String>> {
        circles(&graph(&sources(files), &["lib.rs"]))
            .into_iter()
            .map(|circle| circle.into_iter().collect())
            .collect()
    }

    #[test]
    fn two_files_that_take_from_each_other_are_a_circle() {
        let circle = [
            ("lib.rs", "mod a; mod b; mod c;"),
            ("a.rs", "use crate::b::B; pub struct A(B);"),
            ("b.rs", "use std::{fmt, sync::Arc}; use crate::{a::A, c}; pub struct B(Arc<A>, c::C);"),
            ("c.rs", "pub struct C;"),
        ];
        assert_eq!(found(&circle), [["a.rs", "b.rs"]]);
        let graph = graph(&sources(&circle), &["lib.rs"]);
        let text = describe(&graph, &circles(&graph)[0]);
        assert_eq!(text, "  a.rs takes B from b.rs\n  b.rs takes A from a.rs");
    }

    #[test]
    fn a_circle_may_go_by_way_of_a_third_file_and_without_an_import() {
        let circle = [
            ("lib.rs", "mod a; mod b; mod c; mod d;"),
            ("a.rs", "pub fn a() { crate::b::b() }"),
            ("b.rs", "pub fn b() { println!(\"{}\", crate::c::c()) }"),
            ("c.rs", "pub fn c() -> u8 { use super::a as first; first::a(); 1 }"),
            ("d.rs", "pub fn d() { super::a::a() }"),
        ];
        assert_eq!(found(&circle), [["a.rs", "b.rs", "c.rs"]]);
    }

    #[test]
    fn a_parent_that_uses_its_child_and_the_child_that_uses_it_are_a_circle() {
        let room = |parent: &'static str| {
            found(&[
                ("lib.rs", "mod a;"),
                ("a.rs", parent),
                ("a/b.rs", "use super::A; pub struct B(A); impl B { pub fn new() {} }"),
            ])
        };
        let circle = [["a.rs", "a/b.rs"]];
        assert_eq!(room("mod b; pub struct A; fn f() { b::B::new() }"), circle);
        assert_eq!(room("mod b; use b::B; pub struct A; fn f(b: B) {}"), circle);
        assert_eq!(room("mod b; pub use self::b::B; pub struct A; fn f(b: B) {}"), circle);
        // It declares it, and hands a name of it on.
        assert!(room("mod b; pub use b::B; pub struct A;").is_empty());
    }

    #[test]
    fn a_name_that_is_handed_on_is_taken_from_where_it_is_defined() {
        let files = [
            ("lib.rs", "mod a; mod b; pub use a::{A, F};"),
            ("a/mod.rs", "mod inner; pub use inner::*; use crate::b::B; pub struct F(B);"),
            ("a/inner.rs", "pub struct A;"),
            ("b.rs", "use crate::A; pub struct B(A);"),
        ];
        assert!(found(&files).is_empty());
        let mut circle = files;
        circle[3].1 = "use crate::F; pub struct B(F);";
        assert_eq!(found(&circle), [["a/mod.rs", "b.rs"]]);
        circle[3].1 = "use super::*; pub struct B(F);";
        assert_eq!(found(&circle), [["a/mod.rs", "b.rs"]]);
    }

    #[test]
    fn of_two_modules_of_one_name_both_are_read() {
        let files = [
            ("lib.rs", "mod a; #[cfg(x)] mod tls; #[cfg(not(x))] #[path = \"no_tls.rs\"] mod tls;"),
            ("a.rs", "use crate::tls::open; pub struct A;"),
            ("tls.rs", "use crate::a::A; pub fn open(_: A) {}"),
            ("no_tls.rs", "use crate::a::A; pub fn open(_: A) {}"),
        ];
        assert_eq!(found(&files), [["a.rs", "tls.rs"]]);
        assert_eq!(graph(&sources(&files), &["lib.rs"])["no_tls.rs"].keys().collect::<Vec<_>>(), ["a.rs"]);
    }

    #[test]
    fn what_is_for_tests_only_does_not_count() {
        let files = [
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "#[cfg(test)] mod plans; #[cfg(test)] mod tests { use crate::b::B; } pub struct A;"),
            ("a/plans.rs", "use crate::b::B;"),
            ("b.rs", "use crate::a::A; pub struct B(A);"),
        ];
        assert!(found(&files).is_empty());
    }

    #[test]
    #[should_panic(expected = "no module of [\"lib.rs\"] is in [\"c.rs\"]")]
    fn a_file_that_is_not_read_is_named() {
        found(&[("lib.rs", ""), ("c.rs", "")]);
    }
}

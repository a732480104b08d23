//! What the compiler does not check: sizes, direction of imports, purity, the same platform everywhere, leftovers.
//!
//! Every check is a function from text to complaints, tried on a snippet that must fail before it sees the tree.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

#[path = "tidy/source.rs"]
mod source;

use source::{blank, functions, paths, public_names, without_tests, words};

/// A file may have this many lines.
const FILE_LINES: usize = 600;
/// A function may have this many lines, from `fn` to its closing brace.
const FUNCTION_LINES: usize = 70;

/// Files that may be longer, and why.
const LONG_FILES: &[(&str, &str)] = &[];

/// Functions that may be longer, and why.
const LONG_FUNCTIONS: &[(&str, &str)] = &[];

/// The modules of `src/` from the bottom to the top. A module may use those of lower layers, and those of its own
/// layer as long as that makes no circle.
const LAYERS: &[&[&str]] = &[
    &["identity", "wire", "time", "metrics"],
    &["tunnel", "path", "relay", "directory", "trust", "policy", "limits", "api", "config", "audit", "dns"],
    &["rendezvous"],
    &["node", "forwarding"],
    &["daemon"],
    &["cli"],
    &["main"],
];

/// Modules that may read clocks, files and the environment, start threads and do I/O.
const SHELL: &[&str] = &["daemon", "cli", "main"];

/// Modules outside the shell that may use the platform crate: its batches and devices are what forwarding works on, and
/// a route names a socket by the platform's number.
const PLATFORM_USERS: &[&str] = &["forwarding", "path"];

/// What no pure module may mention.
const IMPURE: &[&str] = &[
    "std::net::UdpSocket",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::fs",
    "std::env",
    "std::thread",
    "std::process",
    "tokio",
    "Instant::now",
    "SystemTime::now",
];

/// Files of pure modules that may mention something of [`IMPURE`], and why.
const IMPURE_FILES: &[(&str, &str, &str)] =
    &[("src/config/file.rs", "std::fs", "reads the configuration file; parsing and checking are apart from it")];

#[test]
fn files_are_short() {
    assert!(!long_files(&[file("a.rs", &"\n".repeat(FILE_LINES + 1))]).is_empty());
    assert!(long_files(&[file("a.rs", &"\n".repeat(FILE_LINES))]).is_empty());
    report(&long_files(&sources()));
}

#[test]
fn functions_are_short() {
    let body = "let s = \"}\"; // }\n".repeat(FUNCTION_LINES);
    assert_eq!(
        long_functions(&[file("a.rs", &format!("fn f<'a>(x: [u8; 2]) -> Vec<&'a str> {{\n{body}}}\n"))]).len(),
        1
    );
    assert!(long_functions(&[file("a.rs", "trait T { fn f(); }\nfn g() {\n}\n")]).is_empty());
    report(&long_functions(&sources()));
}

#[test]
fn imports_point_down() {
    let upward = [file("src/wire/a.rs", "use crate::{identity::X, node::Y};")];
    assert_eq!(upward_imports(&upward).len(), 1);
    let circle =
        [file("src/trust/a.rs", "use crate::policy::X;"), file("src/policy/a.rs", "fn f() { crate::trust::g() }")];
    assert_eq!(upward_imports(&circle).len(), 1);
    assert_eq!(upward_imports(&[file("src/unheard_of.rs", "")]).len(), 1);
    let downward =
        [file("src/node/a.rs", "use crate::{trust::{A, B}, wire};"), file("src/wire/b.rs", "// crate::node\n")];
    assert!(upward_imports(&downward).is_empty());
    report(&upward_imports(&sources()));
}

#[test]
fn the_core_is_pure() {
    let impure = "use std::{collections::BTreeMap, net::UdpSocket, time::Instant};\nfn f() { Instant::now(); }";
    assert_eq!(impurities(&[file("src/node/a.rs", impure)]).len(), 2);
    assert!(impurities(&[file("src/daemon/a.rs", impure)]).is_empty());
    assert!(impurities(&[file("src/node/a.rs", "#[cfg(test)]\nmod tests { fn f() { Instant::now(); } }")]).is_empty());
    assert_eq!(impurities(&[file("src/trust/a.rs", "use agentnet_platform::Tun;")]).len(), 1);
    report(&impurities(&sources()));
}

#[test]
fn the_platform_knows_no_protocol() {
    assert_eq!(protocol_in_platform(&[file("platform/src/a.rs", "use agentnet::wire;")]).len(), 1);
    assert!(
        protocol_in_platform(&[file("platform/src/a.rs", "use agentnet_platform::Tun; // agentnet::\n")]).is_empty()
    );
    report(&protocol_in_platform(&sources()));
    let manifest = fs::read_to_string(root().join("platform/Cargo.toml")).unwrap();
    assert!(!manifest.lines().any(|line| line.starts_with("agentnet ") || line.starts_with("agentnet=")));
}

#[test]
fn platforms_offer_the_same() {
    let linux = file("platform/src/linux/tun.rs", "pub struct Tun;\npub(crate) fn inner() {}");
    let macos = file("platform/src/macos/tun.rs", "pub struct Tun;\npub fn extra() {}");
    assert_eq!(platform_differences(&[linux.clone(), macos]).len(), 1);
    assert!(platform_differences(&[linux.clone(), file("platform/src/macos/tun.rs", "pub struct Tun;")]).is_empty());
    assert_eq!(platform_differences(&[linux]).len(), 1);
    report(&platform_differences(&sources()));
}

#[test]
fn unsafe_code_stays_in_the_platform() {
    let word = concat!("un", "safe");
    assert_eq!(unsafe_outside_platform(&[file("src/a.rs", &format!("fn f() {{ {word} {{ g() }} }}"))]).len(), 1);
    assert!(unsafe_outside_platform(&[file("src/a.rs", &format!("// {word}\n#![forbid({word}_code)]"))]).is_empty());
    report(&unsafe_outside_platform(&sources()));
    let library = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    assert!(library.contains(concat!("#![forbid(un", "safe_code)]")), "src/lib.rs does not forbid it");
}

#[test]
fn nothing_is_left_for_later_or_from_elsewhere() {
    assert_eq!(leftovers(&[file("a.rs", concat!("// TO", "DO: later"))]).len(), 1);
    assert_eq!(leftovers(&[file("a.sh", concat!("cd /wo", "rk/main"))]).len(), 1);
    assert!(leftovers(&[file("a.rs", "// done")]).is_empty());
    report(&leftovers(&all_texts()));
}

#[test]
fn every_fuzz_target_is_there_and_listed() {
    let manifest = "[[bin]]\nname = \"a\"\npath = \"fuzz_targets/a.rs\"\n";
    let found = |names: &[&str]| names.iter().map(|name| format!("fuzz_targets/{name}.rs")).collect();
    assert!(fuzz_differences(manifest, &found(&["a"])).is_empty());
    assert_eq!(fuzz_differences(manifest, &found(&["b"])).len(), 2);
    let folder = root().join("tests/fuzz");
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("tests/fuzz has a Cargo.toml");
    let targets = fs::read_dir(folder.join("fuzz_targets")).expect("tests/fuzz has targets");
    let names = targets.map(|entry| format!("fuzz_targets/{}", entry.unwrap().file_name().to_string_lossy()));
    let names: BTreeSet<String> = names.filter(|name| name.ends_with(".rs")).collect();
    assert!(!names.is_empty(), "no fuzz target");
    report(&fuzz_differences(&manifest, &names));
}

#[test]
fn exceptions_name_what_exists() {
    let sources = sources();
    let exists = |path: &str| sources.iter().any(|file| file.path == path);
    let named = LONG_FILES.iter().map(|(path, _)| *path).chain(IMPURE_FILES.iter().map(|(path, ..)| *path));
    report(
        &named.filter(|path| !exists(path)).map(|path| format!("{path} is excepted but not there")).collect::<Vec<_>>(),
    );
    let functions: BTreeSet<String> = sources.iter().flat_map(function_names).collect();
    let gone = LONG_FUNCTIONS.iter().filter(|(name, _)| !functions.contains(*name));
    report(&gone.map(|(name, _)| format!("{name} is excepted but not there")).collect::<Vec<_>>());
}

/// A text file of the repository; the path is relative to its root.
#[derive(Clone)]
struct File {
    path: String,
    text: String,
}

impl File {
    /// `node` for `src/node/peer.rs` and for `src/node.rs`; none outside `src/`.
    fn module(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?;
        let name = inside.split('/').next()?;
        Some(name.strip_suffix(".rs").unwrap_or(name))
    }
}

fn long_files(files: &[File]) -> Vec<String> {
    let is_excepted = |file: &&File| LONG_FILES.iter().any(|(path, _)| *path == file.path);
    let long = files.iter().filter(|file| !is_excepted(file) && file.text.lines().count() > FILE_LINES);
    long.map(|file| format!("{}: {} lines, at most {FILE_LINES}", file.path, file.text.lines().count())).collect()
}

fn long_functions(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files {
        for function in functions(&blank(&file.text)) {
            let name = format!("{}: {}", file.path, function.name);
            let is_excepted = LONG_FUNCTIONS.iter().any(|(excepted, _)| *excepted == name);
            if function.lines > FUNCTION_LINES && !is_excepted {
                complaints.push(format!("{name}: {} lines, at most {FUNCTION_LINES}", function.lines));
            }
        }
    }
    complaints
}

fn function_names(file: &File) -> Vec<String> {
    functions(&blank(&file.text)).into_iter().map(|function| format!("{}: {}", file.path, function.name)).collect()
}

fn upward_imports(files: &[File]) -> Vec<String> {
    let layer = |module: &str| LAYERS.iter().position(|layer| layer.contains(&module));
    let mut complaints = Vec::new();
    let mut level: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in files {
        let Some(module) = file.module().filter(|module| *module != "lib") else { continue };
        let Some(own) = layer(module) else {
            complaints.push(format!("{}: module {module} has no place in LAYERS", file.path));
            continue;
        };
        for used in paths(&without_tests(&blank(&file.text))) {
            let mut parts = used.split("::");
            let Some(target) = parts.next().filter(|first| *first == "crate").and_then(|_| parts.next()) else {
                continue;
            };
            match layer(target) {
                Some(other) if other > own => {
                    complaints.push(format!("{}: {module} uses {target}, above it", file.path));
                }
                Some(other) if other == own && target != module => {
                    level.entry(module.to_owned()).or_default().insert(target.to_owned());
                }
                _ => {}
            }
        }
    }
    complaints.extend(circle(&level));
    complaints
}

/// The first circle among modules of one layer, if there is one.
fn circle(uses: &BTreeMap<String, BTreeSet<String>>) -> Option<String> {
    let mut left = uses.clone();
    // Whoever uses nobody that is left cannot be part of a circle.
    while let Some(free) = left.iter().find(|(_, used)| !used.iter().any(|one| left.contains_key(one))) {
        let free = free.0.clone();
        left.remove(&free);
    }
    (!left.is_empty()).then(|| format!("modules use each other in a circle: {left:?}"))
}

fn impurities(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files {
        let Some(module) = file.module().filter(|module| !SHELL.contains(module) && *module != "lib") else { continue };
        if file.path.ends_with("/tests.rs") {
            continue;
        }
        let used = paths(&without_tests(&blank(&file.text)));
        for word in IMPURE {
            let is_excepted = IMPURE_FILES.iter().any(|(path, what, _)| *path == file.path && what == word);
            if !is_excepted && used.iter().any(|path| mentions(path, word)) {
                complaints.push(format!("{}: mentions {word}", file.path));
            }
        }
        if !PLATFORM_USERS.contains(&module) && used.iter().any(|path| mentions(path, "agentnet_platform")) {
            complaints.push(format!("{}: {module} uses the platform crate", file.path));
        }
    }
    complaints
}

fn protocol_in_platform(files: &[File]) -> Vec<String> {
    let inside = files.iter().filter(|file| file.path.starts_with("platform/"));
    let knowing = inside.filter(|file| paths(&blank(&file.text)).iter().any(|path| path.starts_with("agentnet::")));
    knowing.map(|file| format!("{}: uses the crate above it", file.path)).collect()
}

fn platform_differences(files: &[File]) -> Vec<String> {
    let offered = |system: &str| -> BTreeMap<String, BTreeSet<String>> {
        let prefix = format!("platform/src/{system}/");
        let inside = files.iter().filter_map(|file| Some((file.path.strip_prefix(&prefix)?.to_owned(), file)));
        inside.map(|(name, file)| (name, public_names(&without_tests(&blank(&file.text))))).collect()
    };
    let (linux, macos) = (offered("linux"), offered("macos"));
    let names: BTreeSet<&String> = linux.keys().chain(macos.keys()).collect();
    let mut complaints = Vec::new();
    for name in names {
        match (linux.get(name), macos.get(name)) {
            (Some(one), Some(other)) if one != other => {
                let differing: Vec<&String> = one.symmetric_difference(other).collect();
                complaints.push(format!("{name}: linux and macos differ in {differing:?}"));
            }
            (Some(_), Some(_)) => {}
            _ => complaints.push(format!("{name}: only one of linux and macos has it")),
        }
    }
    complaints
}

fn unsafe_outside_platform(files: &[File]) -> Vec<String> {
    let outside = files.iter().filter(|file| !file.path.starts_with("platform/"));
    let with = outside.filter(|file| words(&blank(&file.text)).any(|word| word == concat!("un", "safe")));
    with.map(|file| format!("{}: belongs into platform/", file.path)).collect()
}

fn leftovers(files: &[File]) -> Vec<String> {
    let forbidden = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("/wo", "rk/"), concat!("/ro", "ot/")];
    let mut complaints = Vec::new();
    for file in files {
        for (number, line) in file.text.lines().enumerate() {
            let found = forbidden.iter().filter(|word| line.contains(**word));
            complaints.extend(found.map(|word| format!("{}:{}: {word}", file.path, number + 1)));
        }
    }
    complaints
}

fn fuzz_differences(manifest: &str, targets: &BTreeSet<String>) -> Vec<String> {
    let quoted = |line: &str| line.split('"').nth(1).map(str::to_owned);
    let listed =
        manifest.lines().filter(|line| line.trim_start().starts_with("path") && line.contains("fuzz_targets/"));
    let listed: BTreeSet<String> = listed.filter_map(quoted).collect();
    let missing = listed.difference(targets).map(|path| format!("{path} is listed but not there"));
    missing.chain(targets.difference(&listed).map(|path| format!("{path} is there but not listed"))).collect()
}

/// Whether `path` is `word`, lies inside it or ends in it, by whole components.
fn mentions(path: &str, word: &str) -> bool {
    format!("::{path}::").contains(&format!("::{word}::"))
}

fn report(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

fn file(path: &str, text: &str) -> File {
    File { path: path.to_owned(), text: text.to_owned() }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<File> {
    let files: Vec<File> = all_texts().into_iter().filter(|file| file.path.ends_with(".rs")).collect();
    assert!(files.iter().any(|file| file.path == "src/lib.rs"), "the walk finds no sources");
    files
}

/// Every text of the repository that people wrote.
fn all_texts() -> Vec<File> {
    let mut files = Vec::new();
    for folder in ["src", "platform", "tests", "scripts", "packaging", ".ci", ".config"] {
        walk(&root().join(folder), &mut files);
    }
    files
}

fn walk(folder: &Path, files: &mut Vec<File>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            let is_generated = ["target", "corpus", "artifacts", "coverage"].contains(&name.as_str());
            if !is_generated {
                walk(&path, files);
            }
        } else if let Ok(text) = fs::read_to_string(&path) {
            let path = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            files.push(File { path, text });
        }
    }
}

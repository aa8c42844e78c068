//! The import rule, read off the sources: the core is pure, and the parts keep to themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, path::Path, path::PathBuf};

/// Modules that decide. They may not hold a clock, client, lock, task, thread or socket.
const PURE: [&str; 24] = [
    "src/api",
    "src/ipam",
    "src/controller/change",
    "src/controller/conditions",
    "src/controller/eligibility",
    "src/controller/index",
    "src/controller/liveness",
    "src/controller/placement",
    "src/controller/request",
    "src/controller/view",
    "src/small",
    "src/speaker/drop_reason",
    "src/speaker/bpf",
    "src/speaker/filter",
    "src/speaker/inventory",
    "src/speaker/lookalike",
    "src/speaker/monitor",
    "src/speaker/owner",
    "src/speaker/peers",
    "src/speaker/schedule",
    "src/speaker/search",
    "src/speaker/station",
    "src/speaker/triage",
    "src/speaker/wire",
];

/// What a pure module may not name.
const IMPURE: [&str; 16] = [
    "tokio::",
    "async fn",
    ".await",
    "Instant::now",
    "SystemTime",
    "kube::Client",
    "kube::Api",
    "kube::runtime",
    "std::thread",
    "std::fs",
    "std::net::UdpSocket",
    "Mutex",
    "RwLock",
    "ArcSwap",
    "socket2",
    "pnet_datalink",
];

/// Tests that stand beside the code in files of their own: `tests.rs`, `tests/`, `<module>_tests.rs`.
fn is_test(path: &Path) -> bool {
    let path = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(path);
    path.iter()
        .filter_map(|part| part.to_str())
        .any(|part| part == "tests" || part == "tests.rs" || part.ends_with("_tests.rs"))
}

fn rust_files(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            rust_files(&entry.unwrap().path(), found);
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") && !is_test(path) {
        found.push(path.to_owned());
    }
}

/// The files of a module, whether it is a folder or a file.
fn module(name: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for path in [root.join(name), root.join(format!("{name}.rs"))] {
        if path.exists() {
            rust_files(&path, &mut found);
        }
    }
    found
}

/// Lines of code of a file, without comments and without what follows `#[cfg(test)]`.
fn code(path: &Path) -> Vec<(usize, String)> {
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .enumerate()
        .take_while(|(_, line)| !line.trim_start().starts_with("#[cfg(test)]"))
        .map(|(number, line)| (number + 1, line.split("//").next().unwrap_or_default().to_owned()))
        .collect()
}

fn breaches(files: &[PathBuf], forbidden: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files {
        for (number, line) in code(file) {
            for word in forbidden.iter().filter(|word| holds(&line, word)) {
                found.push(format!("{}:{number}: {word}", file.display()));
            }
        }
    }
    found
}

/// Whether a line holds a word, and not only the beginning of a longer one.
fn holds(line: &str, word: &str) -> bool {
    let goes_on = |rest: &str| rest.starts_with(|next: char| next.is_alphanumeric() || next == '_');
    line.match_indices(word).any(|(at, _)| word.ends_with(':') || !goes_on(&line[at + word.len()..]))
}

#[test]
fn pure_modules_hold_no_clock_client_lock_task_or_socket() {
    for name in PURE {
        let files = module(name);
        assert!(!files.is_empty(), "{name} is listed as pure, but there is no such module");
        let found = breaches(&files, &IMPURE);
        assert!(found.is_empty(), "{name} is pure: {found:#?}");
    }
}

#[test]
fn the_parts_use_only_what_they_may() {
    for (name, forbidden) in [
        ("src/api", &["crate::controller", "crate::speaker", "crate::ipam", "crate::telemetry"][..]),
        ("src/ipam", &["crate::controller", "crate::speaker", "crate::api", "crate::telemetry"]),
        ("src/controller", &["crate::speaker"]),
        ("src/speaker", &["crate::controller", "crate::ipam"]),
        ("src/telemetry", &["crate::"]),
    ] {
        let found = breaches(&module(name), forbidden);
        assert!(found.is_empty(), "{name} reaches where it may not: {found:#?}");
    }
}

#[test]
fn pure_modules_do_not_reach_into_edges() {
    let edges = [
        ("src/controller", ["run", "writer", "metrics"].as_slice()),
        (
            "src/speaker",
            ["nic", "nics", "netlink", "responder", "assignments", "report", "driver", "metrics"].as_slice(),
        ),
    ];
    for (part, edges) in edges {
        let forbidden: Vec<String> = edges
            .iter()
            .flat_map(|edge| [format!("super::{edge}::"), format!("{}::{edge}", part.replace("src/", "crate::"))])
            .collect();
        let forbidden: Vec<&str> = forbidden.iter().map(String::as_str).collect();
        for pure in PURE.iter().filter(|name| name.starts_with(part)) {
            let found = breaches(&module(pure), &forbidden);
            assert!(found.is_empty(), "{pure} is pure and uses an edge: {found:#?}");
        }
    }
}

#[test]
fn unsafe_stands_in_one_file_of_the_product() {
    let mut files = Vec::new();
    rust_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let lifted: Vec<_> =
        files.iter().filter(|file| fs::read_to_string(file).unwrap().contains("allow(unsafe_code)")).collect();
    assert!(lifted.len() <= 1, "unsafe is allowed in the one file that makes the socket: {lifted:?}");
}

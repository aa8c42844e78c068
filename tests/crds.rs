//! The YAML in `crds/` and in the chart is what `l2lb crds` prints. `make crds` writes it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeMap, fs, path::Path, process::Command};

/// File name and text of each definition that the program prints, named as in the folders.
fn printed() -> BTreeMap<String, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_l2lb")).arg("crds").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.split("---\n").filter(|part| !part.is_empty()).map(|part| (name_of(part), part.to_owned())).collect()
}

fn name_of(definition: &str) -> String {
    let name = definition.lines().find_map(|line| line.strip_prefix("  name: ")).expect("a definition has a name");
    let (plural, group) = name.split_once('.').expect("plural.group");
    format!("{group}_{plural}.yaml")
}

fn folder(path: &str) -> BTreeMap<String, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_dir(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap())
        })
        .collect()
}

#[test]
fn the_folders_hold_what_the_program_prints() {
    let printed = printed();
    assert_eq!(printed.len(), 3);
    if std::env::var_os("L2LB_WRITE_CRDS").is_some() {
        for (name, text) in &printed {
            for folder in ["crds", "charts/l2lb/files/crds"] {
                fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(name), text).unwrap();
            }
        }
    }
    for path in ["crds", "charts/l2lb/files/crds"] {
        let held = folder(path);
        assert_eq!(held.keys().collect::<Vec<_>>(), printed.keys().collect::<Vec<_>>(), "files in {path}");
        for (name, text) in &printed {
            assert!(held[name] == *text, "{path}/{name} is not what `l2lb crds` prints: run `make crds`");
        }
    }
}

#[test]
fn every_field_has_a_description() {
    fn walk(path: &str, schema: &serde_json::Value, missing: &mut Vec<String>) {
        if let Some(properties) = schema["properties"].as_object() {
            for (name, property) in properties {
                let path = format!("{path}.{name}");
                if property["description"].as_str().is_none_or(str::is_empty) {
                    missing.push(path.clone());
                }
                walk(&path, property, missing);
                walk(&path, &property["items"], missing);
            }
        }
    }
    let mut missing = Vec::new();
    for definition in l2lb::api::custom_resource_definitions() {
        let definition = serde_json::to_value(&definition).unwrap();
        let kind = definition["spec"]["names"]["kind"].as_str().unwrap();
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        assert!(!schema["description"].as_str().unwrap().contains("Auto-generated"), "{kind} describes itself");
        walk(kind, schema, &mut missing);
    }
    // Lists and objects of Kubernetes' own types describe themselves.
    assert!(missing.is_empty(), "without a description in `kubectl explain`: {missing:?}");
}

//! Plays the inputs that the fuzzer found worth keeping, and those that once showed a defect, without the fuzzer: what is
//! promised in `fuzz/src/targets` holds for each. `make fuzz` looks for new ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../fuzz/src/targets/mod.rs"]
mod targets;

use std::{fs, panic, path::Path};

#[test]
fn every_kept_input_holds() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let mut broken = Vec::new();
    for (name, run) in targets::ALL {
        let mut played = 0;
        for folder in ["corpus", "regressions"] {
            let folder = fuzz.join(folder).join(name);
            for file in fs::read_dir(&folder).into_iter().flatten() {
                let path = file.unwrap().path();
                let input = fs::read(&path).unwrap();
                played += 1;
                if panic::catch_unwind(|| run(&input)).is_err() {
                    broken.push(path);
                }
            }
        }
        assert!(played >= 20, "fuzz/corpus/{name} holds {played} inputs: that cannot be all");
        println!("{name}: {played} inputs");
    }
    assert!(broken.is_empty(), "the panics above belong to {broken:#?}");
}

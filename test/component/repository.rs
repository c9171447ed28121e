use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::repository;

#[test]
fn the_lock_file_has_one_of_each_that_must_be_one() {
    let lock = fs::read_to_string(repository("Cargo.lock")).unwrap();
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let field = |block: &'static str, key: &str| -> Option<&'static str> {
        block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"'))
    };
    let lock: &'static str = Box::leak(lock.into_boxed_str());
    for block in lock.split("[[package]]").skip(1) {
        let name = field(block, "name").unwrap();
        versions.entry(name).or_default().push(field(block, "version").unwrap());
        assert!(!field(block, "source").is_some_and(|s| s.starts_with("git")), "{name} comes from git");
    }
    for one in ["kube", "kube-client", "kube-core", "k8s-openapi", "rustls", "schemars"] {
        assert_eq!(versions[one].len(), 1, "{one}: {:?}", versions[one]);
    }
    for other in ["aws-lc-rs", "aws-lc-sys", "openssl"] {
        assert!(!versions.contains_key(other), "{other}: one TLS provider is enough, and ring is it");
    }
}

#[test]
fn the_core_depends_on_nothing_that_could_do_input_or_output() {
    // As cargo reads it: also tables of one dependency, of a target and of the build script.
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline", "--manifest-path"])
        .arg(repository("src/core/Cargo.toml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let core = packages.iter().find(|package| package["name"] == "slicegate-core").unwrap();
    let names: Vec<&str> = core["dependencies"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|dependency| dependency["kind"] != "dev")
        .map(|dependency| dependency["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["thiserror"]);
}

#[test]
fn no_file_names_a_place_of_somebodys_machine() {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(repository(".")).output().unwrap();
    let home = ["/ro", "ot/"].concat();
    let users = ["/ho", "me/"].concat();
    let work = ["/wo", "rk/"].concat();
    let mut read = 0;
    for name in String::from_utf8(listed.stdout).unwrap().split('\0').filter(|n| !n.is_empty()) {
        let Ok(text) = fs::read_to_string(repository(name)) else { continue };
        read += 1;
        for place in [&home, &users, &work] {
            assert!(!text.contains(place), "{name} names a place in {place}");
        }
    }
    assert!(read > 50, "only {read} files");
}

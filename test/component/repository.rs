use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

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
    assert!(!versions.contains_key("aws-lc-rs"), "one TLS provider is enough, and ring is it");
}

#[test]
fn the_core_depends_on_nothing_that_could_do_input_or_output() {
    let manifest = fs::read_to_string(repository("src/core/Cargo.toml")).unwrap();
    let section = manifest.split("[dependencies]").nth(1).unwrap().split('[').next().unwrap();
    let names: Vec<&str> =
        section.lines().filter_map(|l| l.split(['.', ' ', '=']).next()).filter(|n| !n.is_empty()).collect();
    assert_eq!(names, ["thiserror"]);
}

#[test]
fn no_file_names_a_place_of_somebodys_machine() {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(repository(".")).output().unwrap();
    let home = ["/ro", "ot/"].concat();
    let users = ["/ho", "me/"].concat();
    let mut read = 0;
    for name in String::from_utf8(listed.stdout).unwrap().split('\0').filter(|n| !n.is_empty()) {
        let Ok(text) = fs::read_to_string(repository(name)) else { continue };
        read += 1;
        assert!(!text.contains(&home) && !text.contains(&users), "{name}");
    }
    assert!(read > 50, "only {read} files");
}

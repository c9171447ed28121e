//! The image `slicegate`, as far as it can be looked at without Docker.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::repository;

/// Instructions with their arguments, continued lines joined.
fn instructions(dockerfile: &str) -> Vec<(String, Vec<String>)> {
    let text: String =
        dockerfile.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
    text.replace("\\\n", " ")
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().map(str::to_owned);
            Some((words.next()?, words.collect()))
        })
        .collect()
}

#[test]
fn the_dockerfile_copies_what_there_is() {
    let text = fs::read_to_string(repository("Dockerfile")).unwrap();
    let mut stages = BTreeSet::new();
    let mut copies = 0;
    let all = instructions(&text);
    assert_eq!(all[0].0, "FROM");
    for (instruction, words) in &all {
        match instruction.as_str() {
            "FROM" => {
                if let [_, _, name] = words.as_slice() {
                    stages.insert(name.clone());
                }
            }
            "COPY" => {
                copies += 1;
                if let Some(stage) = words[0].strip_prefix("--from=") {
                    assert!(stages.contains(stage), "COPY from {stage}, which is no earlier stage");
                } else {
                    for source in &words[..words.len() - 1] {
                        assert!(repository(source).exists(), "COPY {source}: not in the repository");
                    }
                }
            }
            "RUN" => {
                for script in words.iter().filter(|word| word.starts_with("hack/")) {
                    assert!(repository(script).is_file(), "RUN {script}: not in the repository");
                }
            }
            "WORKDIR" | "LABEL" | "ENTRYPOINT" => {}
            other => panic!("{other}: not an instruction that this file needs"),
        }
    }
    assert_eq!(copies, 2);
}

/// The programs find their loader and every library in the image itself.
#[test]
fn the_image_is_complete() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("root");
    let slicegate = Path::new(env!("CARGO_BIN_EXE_slicegate"));
    let built = Command::new(repository("hack/image/build-root"))
        .arg(&root)
        .arg(slicegate.parent().unwrap())
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));

    let listed = Command::new("ldd").arg(slicegate).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let libraries: Vec<&str> = listed.split_whitespace().filter(|word| word.starts_with('/')).collect();
    assert!(
        libraries.iter().any(|it| it.contains("libc.so")) && libraries.iter().any(|it| it.contains("/ld-"))
    );
    for library in libraries {
        assert!(root.join(library.trim_start_matches('/')).is_file(), "{library} is not in the image");
    }
    for file in ["usr/bin/slicegate", "usr/bin/kubectl-slices", "etc/passwd"] {
        assert!(root.join(file).is_file(), "{file} is not in the image");
    }
    assert!(fs::read_to_string(root.join("etc/passwd")).unwrap().contains("nonroot:x:65532:"));

    let again = Command::new(repository("hack/image/build-root"))
        .arg(&root)
        .arg(slicegate.parent().unwrap())
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&again.stderr).contains("is not empty"), "a used folder is refused");
}

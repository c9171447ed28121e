//! NVIDIA's CDI spec: the driver's libraries, tools and hooks.
//!
//! Which files a driver has, and what makes them usable in a container, only NVIDIA's toolkit knows. It writes that into the
//! top-level edits of its own spec, whatever the GPUs: those are taken over as they are, fields unknown here included.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::error::CdiError;

/// What is taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Base {
    /// Its `cdiVersion`, which is enough for its edits.
    pub(super) version: String,
    /// `env` of its top-level `containerEdits`.
    pub(super) env: Vec<Value>,
    /// Their `deviceNodes`.
    pub(super) device_nodes: Vec<Value>,
    /// All else in them.
    pub(super) others: Map<String, Value>,
}

/// Tells one version of a file from another: the toolkit renames a new file into place.
type Stamp = (u64, u64, i64, i64);

/// The file, read again when it changes: it is long, and slices come and go all the time.
#[derive(Debug)]
pub(super) struct BaseFile {
    path: PathBuf,
    known: Option<(Stamp, Base)>,
}

impl BaseFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, known: None }
    }

    pub(super) fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// What the file says now; `None` when there is none.
    pub(super) fn read(&mut self) -> Result<Option<&Base>, CdiError> {
        let fail = |reason: String| CdiError::Base { path: self.path.clone(), reason };
        let stamp = match fs::metadata(&self.path) {
            Ok(found) => (found.ino(), found.size(), found.mtime(), found.mtime_nsec()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.known = None;
                return Ok(None);
            }
            Err(error) => return Err(fail(error.to_string())),
        };
        if self.known.as_ref().is_none_or(|(known, _)| *known != stamp) {
            let text = fs::read_to_string(&self.path).map_err(|error| fail(error.to_string()))?;
            self.known = Some((stamp, parse(&text).map_err(fail)?));
        }
        Ok(self.known.as_ref().map(|(_, base)| base))
    }
}

fn parse(text: &str) -> Result<Base, String> {
    // Of JSON, YAML allows all but the tabs that it may be indented with.
    let value: Value = if text.trim_start().starts_with('{') {
        serde_json::from_str(text).map_err(|error| error.to_string())?
    } else {
        serde_saphyr::from_str(text).map_err(|error| error.to_string())?
    };
    let version = value.get("cdiVersion").and_then(Value::as_str).ok_or("it has no cdiVersion")?.to_owned();
    let mut others = match value.get("containerEdits") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(edits)) => edits.clone(),
        Some(_) => return Err("its containerEdits are no object".to_owned()),
    };
    let mut list = |name| match others.remove(name) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => Ok(list),
        Some(_) => Err(format!("its containerEdits.{name} is no list")),
    };
    Ok(Base { version, env: list("env")?, device_nodes: list("deviceNodes")?, others })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Shortened from the output of nvidia-ctk cdi generate, with a field that no version of CDI has.
    const YAML: &str = r"---
cdiVersion: 0.7.0
kind: nvidia.com/gpu
devices:
- name: '0'
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
containerEdits:
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  deviceNodes:
  - path: /dev/nvidiactl
    permissions: rw
  hooks:
  - hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
    args: [nvidia-cdi-hook, update-ldcache, --folder, /usr/lib64]
  mounts:
  - hostPath: /usr/lib64/libcuda.so.580.95.05
    containerPath: /usr/lib64/libcuda.so.580.95.05
    options: [ro, nosuid, nodev, bind]
  additionalGids: [44]
  ofTheFuture: {depth: 1.5, yes: true}
";

    fn edits() -> Value {
        json!({
            "env": ["NVIDIA_VISIBLE_DEVICES=void"],
            "deviceNodes": [{"path": "/dev/nvidiactl", "permissions": "rw"}],
            "hooks": [{
                "hookName": "createContainer",
                "path": "/usr/bin/nvidia-cdi-hook",
                "args": ["nvidia-cdi-hook", "update-ldcache", "--folder", "/usr/lib64"],
            }],
            "mounts": [{
                "hostPath": "/usr/lib64/libcuda.so.580.95.05",
                "containerPath": "/usr/lib64/libcuda.so.580.95.05",
                "options": ["ro", "nosuid", "nodev", "bind"],
            }],
            "additionalGids": [44],
            "ofTheFuture": {"depth": 1.5, "yes": true},
        })
    }

    #[test]
    fn yaml_and_json_are_taken_over_whole() {
        let from_yaml = parse(YAML).unwrap();
        let mut merged = from_yaml.others.clone();
        merged.insert("env".to_owned(), from_yaml.env.clone().into());
        merged.insert("deviceNodes".to_owned(), from_yaml.device_nodes.clone().into());
        assert_eq!(Value::Object(merged), edits());
        assert_eq!(from_yaml.version, "0.7.0");
        let json = json!({"cdiVersion": "0.7.0", "kind": "k", "devices": [], "containerEdits": edits()});
        let text = serde_json::to_string_pretty(&json).unwrap().replace("  ", "\t");
        assert_eq!(parse(&text).unwrap(), from_yaml);
    }

    #[test]
    fn edits_may_be_absent() {
        let base = parse("cdiVersion: 0.5.0\ncontainerEdits:\n  env:\n").unwrap();
        assert_eq!((base.version.as_str(), base.env.len(), base.others.len()), ("0.5.0", 0, 0));
        assert_eq!(parse("cdiVersion: 0.5.0\n").unwrap(), base);
    }

    #[test]
    fn what_cannot_be_used_is_named_with_the_command_that_makes_it_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nvidia.yaml");
        for text in [
            "",
            "{\"cdiVersion\": ",
            "kind: nvidia.com/gpu",
            "cdiVersion: 0.5.0\ncontainerEdits: 3",
            "cdiVersion: 0.5.0\ncontainerEdits: {env: 3}",
        ] {
            fs::write(&path, text).unwrap();
            let error = BaseFile::new(path.clone()).read().unwrap_err().to_string();
            assert!(
                error.contains(&format!("nvidia-ctk cdi generate --output={}", path.display())),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn the_file_is_read_again_when_it_was_replaced_or_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nvidia.yaml");
        let mut file = BaseFile::new(path.clone());
        assert_eq!(file.read().unwrap(), None);
        fs::write(&path, YAML).unwrap();
        assert_eq!(file.read().unwrap().unwrap().version, "0.7.0");
        let other = folder.path().join("other");
        fs::write(&other, YAML.replace("0.7.0", "0.8.0")).unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!(file.read().unwrap().unwrap().version, "0.8.0");
        fs::remove_file(&path).unwrap();
        assert_eq!(file.read().unwrap(), None);
    }
}

//! Container images without a registry and without Docker: one layer and its configuration, in an archive of the kind that
//! `docker save` writes and `ctr images import` reads.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::process::Command;

use crate::repo::{Repo, output};

/// The image that holds the namespaces of every pod.
pub const PAUSE: &str = "localhost/pause:rig";
const BUSYBOX: &str = "/bin/busybox";

/// An image as one wants it.
#[derive(Debug, Clone)]
pub struct Image {
    name: String,
    root: Option<PathBuf>,
    files: Vec<(PathBuf, String)>,
    links: Vec<(String, String)>,
    entrypoint: Vec<String>,
    env: Vec<String>,
    user: String,
    labels: BTreeMap<String, String>,
}

impl Image {
    /// An empty image.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            root: None,
            files: Vec::new(),
            links: Vec::new(),
            entrypoint: Vec::new(),
            env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()],
            user: String::new(),
            labels: BTreeMap::new(),
        }
    }

    /// The image `slicegate` with the programs in a folder, for example `target/debug`: the content is that of
    /// `hack/image/build-root`, which the Dockerfile uses, too. `scratch` is a folder for it.
    pub async fn slicegate(repo: &Repo, programs: &Path, scratch: &Path) -> Result<Self> {
        let root = scratch.join("slicegate-image");
        if root.exists() {
            fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))?;
        }
        let script = repo.root().join("hack/image/build-root");
        output(Command::new(&script).arg(&root).arg(programs)).await.context("run hack/image/build-root")?;
        Ok(Self::new("slicegate").root(root).entrypoint(["/usr/bin/slicegate"]))
    }

    /// The image `busybox`: a shell and the usual commands, for workloads of tests. Needs Debian's `busybox-static`.
    pub async fn busybox() -> Result<Self> {
        let list = output(Command::new(BUSYBOX).arg("--list"))
            .await
            .with_context(|| format!("run {BUSYBOX}: run hack/prerequisites node"))?;
        let image = Self::new("busybox").file(BUSYBOX, BUSYBOX);
        Ok(list
            .lines()
            .filter(|name| *name != "busybox")
            .fold(image, |image, name| image.link(format!("/bin/{name}"), "busybox"))
            .entrypoint([BUSYBOX]))
    }

    /// The image [`PAUSE`], from the program that `hack/cluster/build node` makes.
    pub fn pause(repo: &Repo) -> Self {
        Self::new(PAUSE).file(repo.programs().join("pause"), "/pause").entrypoint(["/pause"])
    }

    /// Its name, as pods write it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives it another name.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Takes the content of a folder.
    #[must_use]
    pub fn root(mut self, folder: impl Into<PathBuf>) -> Self {
        self.root = Some(folder.into());
        self
    }

    /// Adds a file of the machine under a path of the image.
    #[must_use]
    pub fn file(mut self, source: impl Into<PathBuf>, path: impl Into<String>) -> Self {
        self.files.push((source.into(), path.into()));
        self
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn link(mut self, path: impl Into<String>, target: impl Into<String>) -> Self {
        self.links.push((path.into(), target.into()));
        self
    }

    /// What containers run, before their arguments.
    #[must_use]
    pub fn entrypoint<S: Into<String>>(mut self, line: impl IntoIterator<Item = S>) -> Self {
        self.entrypoint = line.into_iter().map(Into::into).collect();
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push(format!("{name}={value}"));
        self
    }

    /// As whom containers run, by number, unless the pod says otherwise; root if nothing is said.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = user.into();
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Writes the archive.
    pub fn write(&self, archive: &Path) -> Result<()> {
        let layer = archive.with_extension("layer");
        let written = self.write_layer(&layer).and_then(|()| self.write_archive(archive, &layer));
        let _ = fs::remove_file(&layer);
        written.with_context(|| format!("write image {} to {}", self.name, archive.display()))
    }

    fn write_layer(&self, file: &Path) -> Result<()> {
        let mut layer = tar::Builder::new(File::create(file)?);
        // Links and modes are part of the content: /tmp is everybody's.
        layer.follow_symlinks(false);
        // containerd does not read the sparse files of GNU tar.
        layer.sparse(false);
        if let Some(root) = &self.root {
            layer.append_dir_all("", root).with_context(|| format!("read {}", root.display()))?;
        }
        for (source, path) in &self.files {
            layer
                .append_path_with_name(source, path.trim_start_matches('/'))
                .with_context(|| format!("read {}", source.display()))?;
        }
        for (path, target) in &self.links {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            header.set_mode(0o777);
            layer.append_link(&mut header, path.trim_start_matches('/'), target)?;
        }
        layer.into_inner()?.sync_data()?;
        Ok(())
    }

    fn write_archive(&self, archive: &Path, layer: &Path) -> Result<()> {
        let layer_name = format!("{}.tar", digest(File::open(layer)?)?);
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Env": self.env,
                "User": self.user,
                "Labels": self.labels,
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", layer_name.trim_end_matches(".tar"))]},
        })
        .to_string();
        let config_name = format!("{}.json", digest(config.as_bytes())?);
        let manifest =
            json!([{"Config": config_name, "RepoTags": [self.reference()], "Layers": [layer_name]}]);

        let mut out = tar::Builder::new(File::create(archive)?);
        out.sparse(false);
        for (name, text) in [("manifest.json", manifest.to_string()), (&config_name, config)] {
            let mut header = tar::Header::new_gnu();
            header.set_size(u64::try_from(text.len())?);
            header.set_mode(0o644);
            out.append_data(&mut header, name, text.as_bytes())?;
        }
        out.append_path_with_name(layer, &layer_name)?;
        out.into_inner()?;
        Ok(())
    }

    /// The name with a tag.
    fn reference(&self) -> String {
        let last = self.name.rsplit('/').next().unwrap_or_default();
        if last.contains(':') { self.name.clone() } else { format!("{}:latest", self.name) }
    }
}

/// SHA-256 in hexadecimal digits.
fn digest(mut content: impl Read) -> Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match content.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => hash.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(hash
        .finalize()
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect())
}

/// This machine's architecture as image configurations call it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(archive: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(File::open(archive).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(name, content);
        }
        files
    }

    #[test]
    fn archives_are_consistent() {
        let dir = std::env::temp_dir().join(format!("rig-image-{}", std::process::id()));
        let root = dir.join("root/etc");
        fs::create_dir_all(&root).unwrap();
        fs::write(root.join("greeting"), "hello").unwrap();
        let image = Image::new("greeter").root(dir.join("root")).link("/bin/a", "b").entrypoint(["/bin/a"]);
        let archive = dir.join("greeter.tar");
        image.write(&archive).unwrap();
        assert!(!archive.with_extension("layer").exists());

        let files = read(&archive);
        let manifest: serde_json::Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        assert_eq!(manifest[0]["RepoTags"][0], "greeter:latest");
        let config = &files[manifest[0]["Config"].as_str().unwrap()];
        let config: serde_json::Value = serde_json::from_slice(config).unwrap();
        assert_eq!(config["config"]["Entrypoint"][0], "/bin/a");
        let layer = &files[manifest[0]["Layers"][0].as_str().unwrap()];
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", digest(layer.as_slice()).unwrap()));
        fs::write(dir.join("layer.tar"), layer).unwrap();
        assert_eq!(read(&dir.join("layer.tar"))["etc/greeting"], b"hello");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn names_get_a_tag_once() {
        let reference = |name: &str| Image::new(name).reference();
        assert_eq!(reference("slicegate"), "slicegate:latest");
        assert_eq!(reference("localhost:5000/slicegate"), "localhost:5000/slicegate:latest");
        assert_eq!(reference(PAUSE), PAUSE);
    }

    #[test]
    fn the_dockerfile_runs_the_same_program() {
        let dockerfile = include_str!("../../../Dockerfile");
        assert!(dockerfile.lines().any(|line| line == "ENTRYPOINT [\"/usr/bin/slicegate\"]"), "{dockerfile}");
    }
}

//! The host's device numbers.
//!
//! They are read from the tables of the kernel and the driver and not off the nodes in `/dev`: nodes are made by
//! nvidia-modprobe when somebody needs them, and may be missing or left over from before the driver was loaded again.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use super::error::CdiError;

/// The host, as the agent sees it.
#[derive(Clone, Debug, clap::Args)]
pub struct Host {
    /// The host's /dev.
    #[arg(long = "dev-root", default_value = "/dev", value_name = "FOLDER")]
    pub dev: PathBuf,
    /// The host's /proc.
    #[arg(long = "proc-root", default_value = "/proc", value_name = "FOLDER")]
    pub proc: PathBuf,
}

/// The device numbers of this boot.
#[derive(Clone, Debug)]
pub struct Numbers {
    devices: PathBuf,
    majors: BTreeMap<String, u32>,
    minors_table: PathBuf,
    minors: BTreeMap<String, u32>,
}

/// A MIG capability: access to a GPU instance or a compute instance is access to its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Capability {
    /// Major number of its node.
    pub(super) major: u32,
    /// Minor number of its node, which is also its name: `nvidia-cap<minor>`.
    pub(super) minor: u32,
    /// Where in `/proc` the driver says how the node is to be made, while the instance exists.
    pub(super) attributes: String,
}

impl Host {
    /// Reads the tables: `/proc/devices` and the driver's list of MIG capabilities.
    pub fn numbers(&self) -> Result<Numbers, CdiError> {
        let devices = self.proc.join("devices");
        let minors_table = self.proc.join("driver/nvidia-caps/mig-minors");
        let read = |path: &PathBuf| {
            fs::read_to_string(path).map_err(|source| CdiError::Table { path: path.clone(), source })
        };
        let (mut majors, mut minors) = (BTreeMap::new(), BTreeMap::new());
        let text = read(&devices)?;
        // Several drivers may share a name; the first is the one that nvidia-modprobe takes.
        for (line, text) in character_devices(&text) {
            let (major, name) = pair(text, |number, name| Some((number.parse().ok()?, name)))
                .ok_or_else(|| bad_line(&devices, line, text, "a major number and a name"))?;
            majors.entry(name.to_owned()).or_insert(major);
        }
        for (line, text) in numbered(&read(&minors_table)?).filter(|(_, text)| !text.is_empty()) {
            let (name, minor) = pair(text, |name, number| Some((name.to_owned(), number.parse().ok()?)))
                .ok_or_else(|| bad_line(&minors_table, line, text, "a capability and its minor number"))?;
            minors.insert(name, minor);
        }
        Ok(Numbers { devices, majors, minors_table, minors })
    }
}

impl Numbers {
    /// The major number of a driver's character devices.
    pub fn major(&self, driver: &str) -> Option<u32> {
        self.majors.get(driver).copied()
    }

    /// The major number of `/dev/nvidia<n>` and `/dev/nvidiactl`. Older drivers register it as `nvidia-frontend`.
    pub(super) fn gpu_major(&self) -> Option<u32> {
        self.major("nvidia").or_else(|| self.major("nvidia-frontend"))
    }

    /// The capability of a GPU instance, or of a compute instance in it; `gpu` is the number of `/dev/nvidia<gpu>`.
    pub(super) fn capability(
        &self,
        gpu: u32,
        instance: u32,
        compute: Option<u32>,
    ) -> Result<Capability, CdiError> {
        let major = self.major("nvidia-caps").ok_or_else(|| CdiError::Unlisted {
            path: self.devices.clone(),
            name: "nvidia-caps".to_owned(),
            advice: "load the NVIDIA driver (nvidia-smi does); MIG needs version 450 or later",
        })?;
        let inner = compute.map_or_else(String::new, |compute| format!("ci{compute}/"));
        let name = format!("gpu{gpu}/gi{instance}/{inner}access");
        let minor = self.minors.get(&name).copied().ok_or_else(|| CdiError::Unlisted {
            path: self.minors_table.clone(),
            name,
            advice: "let --proc-root name the /proc of the host whose GPUs NVML shows",
        })?;
        let attributes = format!("driver/nvidia/capabilities/gpu{gpu}/mig/gi{instance}/{inner}access");
        Ok(Capability { major, minor, attributes })
    }
}

/// Lines with their numbers, from 1.
fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines().map(str::trim))
}

/// The lines of the section `Character devices:`, which an empty line ends.
fn character_devices(text: &str) -> impl Iterator<Item = (usize, &str)> {
    numbered(text)
        .skip_while(|(_, text)| *text != "Character devices:")
        .skip(1)
        .take_while(|(_, text)| !text.is_empty())
}

fn pair<'a, T>(text: &'a str, read: impl FnOnce(&'a str, &'a str) -> Option<T>) -> Option<T> {
    let (first, second) = text.split_once(' ')?;
    let second = second.trim_start();
    if second.contains(' ') { None } else { read(first, second) }
}

pub(super) fn bad_line(path: &std::path::Path, line: usize, text: &str, expected: &'static str) -> CdiError {
    CdiError::Line { path: path.to_owned(), line, text: text.to_owned(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn laid_out() -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        nvml_sim::host::lay_out(root.path(), 2).unwrap();
        let host = Host { dev: root.path().join("dev"), proc: root.path().join("proc") };
        (root, host)
    }

    #[test]
    fn numbers_are_those_of_the_tables() {
        let (_root, host) = laid_out();
        let numbers = host.numbers().unwrap();
        assert_eq!(numbers.gpu_major(), Some(195));
        assert_eq!(numbers.major("nvidia-uvm"), Some(235));
        assert_eq!(numbers.major("loop"), None, "a block device");
        for (gpu, instance, compute) in [(0, 1, None), (0, 1, Some(0)), (1, 14, Some(7))] {
            let found = numbers.capability(gpu, instance, compute).unwrap();
            let minor = nvml_sim::host::capability_minor(gpu, instance, compute);
            assert_eq!((found.major, found.minor), (236, minor));
            let attributes = fs::read_to_string(host.proc.join(found.attributes)).unwrap();
            assert!(attributes.contains(&format!("DeviceFileMinor: {minor}\n")), "{attributes}");
        }
    }

    #[test]
    fn older_drivers_have_another_name_for_the_gpus() {
        let (_root, host) = laid_out();
        let devices = "Character devices:\n195 nvidia-frontend\n";
        fs::write(host.proc.join("devices"), devices).unwrap();
        assert_eq!(host.numbers().unwrap().gpu_major(), Some(195));
    }

    #[test]
    fn a_corrupt_line_is_named() {
        let (_root, host) = laid_out();
        let table = host.proc.join("driver/nvidia-caps/mig-minors");
        for corrupt in ["gpu0/gi1/access", "gpu0/gi1/access twelve", "gpu0/gi1/access 12 13"] {
            fs::write(&table, format!("config 1\nmonitor 2\n{corrupt}\n")).unwrap();
            let error = host.numbers().unwrap_err().to_string();
            assert!(
                error.contains("mig-minors line 3") && error.contains(&format!("{corrupt:?}")),
                "{corrupt}: {error}"
            );
        }
        nvml_sim::host::lay_out(host.proc.parent().unwrap(), 1).unwrap();
        fs::write(host.proc.join("devices"), "Character devices:\n  1 mem\nnvidia\n").unwrap();
        let error = host.numbers().unwrap_err().to_string();
        assert!(error.contains("devices line 3"), "{error}");
    }

    #[test]
    fn what_is_missing_is_named_with_what_to_do() {
        let (_root, host) = laid_out();
        let numbers = host.numbers().unwrap();
        let error = numbers.capability(2, 0, None).unwrap_err().to_string();
        assert!(error.contains("gpu2/gi0/access") && error.contains("--proc-root"), "{error}");
        fs::write(host.proc.join("devices"), "Character devices:\n195 nvidia\n").unwrap();
        let error = host.numbers().unwrap().capability(0, 1, None).unwrap_err().to_string();
        assert!(error.contains("nvidia-caps") && error.contains("nvidia-smi"), "{error}");
        fs::remove_file(host.proc.join("driver/nvidia-caps/mig-minors")).unwrap();
        let error = host.numbers().unwrap_err().to_string();
        assert!(error.contains("mig-minors") && error.contains("load the NVIDIA driver"), "{error}");
    }
}

//! The nodes in `/dev/nvidia-caps`.
//!
//! The driver does not make them; nvidia-modprobe does when an NVIDIA tool runs as root. What is made here follows its rules.
//! A runtime that makes nodes for a container by their numbers does without; one that binds the host's nodes, as for a pod
//! with a user namespace, does not.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use super::error::CdiError;
use super::host::{Capability, Host, bad_line};

/// What the driver says of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Attributes {
    mode: u32,
    modify: bool,
}

impl Default for Attributes {
    /// What the driver says of every MIG instance's node, unless it was told otherwise.
    fn default() -> Self {
        Self { mode: 0o444, modify: true }
    }
}

/// What is where a node should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Present {
    Nothing,
    CharacterDevice(u64),
    Other,
}

/// Whether what is there must be replaced by the device `number`.
fn is_wrong(present: Present, number: u64) -> bool {
    present != Present::CharacterDevice(number)
}

/// Makes the node of a capability, or replaces one with other numbers.
pub(super) fn ensure(host: &Host, capability: &Capability) -> Result<(), CdiError> {
    let attributes = read_attributes(&host.proc.join(&capability.attributes))?;
    let folder = host.dev.join("nvidia-caps");
    let path = folder.join(format!("nvidia-cap{}", capability.minor));
    let number = makedev(capability.major, capability.minor);
    let make = || -> io::Result<()> {
        if attributes.modify && is_wrong(look(&path)?, number) {
            fs::create_dir_all(&folder)?;
            replace(&path, number, attributes.mode)?;
        }
        Ok(())
    };
    make().map_err(|source| CdiError::Node {
        path: path.clone(),
        major: capability.major,
        minor: capability.minor,
        attributes: format!("/proc/{}", capability.attributes),
        source,
    })
}

fn look(path: &Path) -> io::Result<Present> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_char_device() => Ok(Present::CharacterDevice(found.rdev())),
        Ok(_) => Ok(Present::Other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Present::Nothing),
        Err(error) => Err(error),
    }
}

/// Puts a node at `path` in one step, so that no container meets none.
fn replace(path: &Path, number: u64, mode: u32) -> io::Result<()> {
    let temporary = path.with_extension("new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    mknodat(CWD, &temporary, FileType::CharacterDevice, Mode::from_raw_mode(mode), number)?;
    // Not left to the agent's umask.
    fs::set_permissions(&temporary, fs::Permissions::from_mode(mode))?;
    fs::rename(&temporary, path)
}

/// Reads `DeviceFileMode` (decimal) and `DeviceFileModify`. The file is there only while the instance is.
fn read_attributes(path: &Path) -> Result<Attributes, CdiError> {
    let mut attributes = Attributes::default();
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(attributes),
        Err(source) => return Err(CdiError::Table { path: path.to_owned(), source }),
    };
    for (line, text) in (1..).zip(text.lines()) {
        let Some((name, value)) = text.split_once(':') else { continue };
        let value = || {
            value
                .trim()
                .parse::<u32>()
                .map_err(|_| bad_line(path, line, text, "a device file attribute with a number"))
        };
        match name {
            "DeviceFileMode" => attributes.mode = value()? & 0o777,
            "DeviceFileModify" => attributes.modify = value()? != 0,
            _ => {}
        }
    }
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host whose node of GPU instance 1 on GPU 0 may be made.
    fn laid_out() -> (tempfile::TempDir, Host, Capability) {
        let root = tempfile::tempdir().unwrap();
        nvml_sim::host::lay_out(root.path(), 1).unwrap();
        let host = Host { dev: root.path().join("dev"), proc: root.path().join("proc") };
        let capability = host.numbers().unwrap().capability(0, 1, None).unwrap();
        fs::remove_file(host.proc.join(&capability.attributes)).unwrap();
        (root, host, capability)
    }

    /// Whether this process can make device nodes. Where it cannot, what must be said instead is checked.
    fn made(result: Result<(), CdiError>) -> bool {
        let Err(error) = result else { return true };
        let CdiError::Node { source, .. } = &error else { panic!("{error}") };
        assert_eq!(source.kind(), io::ErrorKind::PermissionDenied, "{error}");
        let error = error.to_string();
        for part in [
            "nvidia-cap12 (236:12)",
            "CAP_MKNOD",
            "nvidia-modprobe -f /proc/driver/nvidia/capabilities/gpu0/mig/gi1/access",
        ] {
            assert!(error.contains(part), "{error}");
        }
        false
    }

    #[test]
    fn only_the_right_device_is_right() {
        let right = makedev(236, 12);
        assert!(!is_wrong(Present::CharacterDevice(right), right));
        assert!(is_wrong(Present::CharacterDevice(makedev(237, 12)), right));
        assert!(is_wrong(Present::CharacterDevice(makedev(236, 13)), right));
        assert!(is_wrong(Present::Other, right));
        assert!(is_wrong(Present::Nothing, right));
    }

    #[test]
    fn a_missing_node_is_made_once_as_nvidia_modprobe_makes_it() {
        let (_root, host, capability) = laid_out();
        let path = host.dev.join("nvidia-caps/nvidia-cap12");
        if made(ensure(&host, &capability)) {
            assert_eq!(look(&path).unwrap(), Present::CharacterDevice(makedev(236, 12)));
            let first = fs::metadata(&path).unwrap();
            assert_eq!(first.mode() & 0o7777, 0o444);
            ensure(&host, &capability).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().ino(), first.ino(), "made twice");
        } else {
            assert_eq!(look(&path).unwrap(), Present::Nothing);
        }
    }

    #[test]
    fn the_folder_is_made_too() {
        let (_root, host, capability) = laid_out();
        fs::remove_dir(host.dev.join("nvidia-caps")).unwrap();
        made(ensure(&host, &capability));
        assert!(host.dev.join("nvidia-caps").is_dir());
    }

    #[test]
    fn what_has_other_numbers_is_replaced_and_leftovers_do_not_matter() {
        let (_root, host, capability) = laid_out();
        let path = host.dev.join("nvidia-caps/nvidia-cap12");
        fs::write(&path, "").unwrap();
        fs::write(path.with_extension("new"), "").unwrap();
        if made(ensure(&host, &capability)) {
            assert_eq!(look(&path).unwrap(), Present::CharacterDevice(makedev(236, 12)));
            replace(&path, makedev(236, 99), 0o444).unwrap();
            ensure(&host, &capability).unwrap();
            assert_eq!(look(&path).unwrap(), Present::CharacterDevice(makedev(236, 12)));
        }
        assert_eq!(look(&path.with_extension("new")).unwrap(), Present::Nothing);
    }

    #[test]
    fn the_driver_says_how_a_node_is_made_and_whether() {
        let (_root, host, capability) = laid_out();
        let file = host.proc.join(&capability.attributes);
        let path = host.dev.join("nvidia-caps/nvidia-cap12");
        fs::write(&file, "DeviceFileMinor: 12\nDeviceFileMode: 256\nDeviceFileModify: 0\n").unwrap();
        assert_eq!(read_attributes(&file).unwrap(), Attributes { mode: 0o400, modify: false });
        ensure(&host, &capability).unwrap();
        assert_eq!(look(&path).unwrap(), Present::Nothing, "made against the driver's word");
        fs::write(&file, "DeviceFileMinor: 12\nDeviceFileMode: 256\nDeviceFileModify: 1\n").unwrap();
        if made(ensure(&host, &capability)) {
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o400);
        }
        fs::write(&file, "DeviceFileMode: rw\n").unwrap();
        let error = ensure(&host, &capability).unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("DeviceFileMode: rw"), "{error}");
    }

    #[test]
    fn a_refusal_says_which_privilege_is_missing() {
        let (_root, host, capability) = laid_out();
        let path = host.dev.join("nvidia-caps/nvidia-cap12");
        let error = CdiError::Node {
            path,
            major: capability.major,
            minor: capability.minor,
            attributes: format!("/proc/{}", capability.attributes),
            source: io::ErrorKind::PermissionDenied.into(),
        };
        assert!(!made(Err(error)));
    }
}

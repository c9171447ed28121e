//! The folder that the container runtime watches.
//!
//! Nothing is synced to disk: `/var/run` is a tmpfs, and after a reboot slices and files are made anew.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use slicegate_core::geometry::Slice;
use slicegate_core::id::GpuUuid;

use super::base::BaseFile;
use super::error::CdiError;
use super::host::{Host, Numbers};
use super::name::{self, DRIVER_DEVICE};
use super::spec::{self, SliceDevice};
use super::{Args, nodes};

/// What our files' names begin with. Files called otherwise are never touched.
pub const PREFIX: &str = "slicegate.dev-mig-";
/// Ends a file that is being written. Loaders of CDI specs look at `.json` and `.yaml` only.
const UNFINISHED: &str = "new";

/// Our files in the folder of CDI specs.
#[derive(Debug)]
pub struct CdiDir {
    folder: PathBuf,
    base: BaseFile,
    base_is_missing: bool,
    host: Host,
    ready: BTreeSet<String>,
}

impl CdiDir {
    /// The folder that `args` name. Nothing is read or written yet.
    pub fn new(args: &Args) -> Self {
        Self {
            folder: args.cdi_dir.clone(),
            base: BaseFile::new(args.cdi_base.clone()),
            base_is_missing: false,
            host: args.host.clone(),
            ready: BTreeSet::new(),
        }
    }

    /// Makes the folder speak of `wanted` and no other slices of ours: writes what is missing or differs and makes device
    /// nodes, then removes what is not wanted, and what a crash left half written. `wanted` are slices that exist, and at
    /// least those that a pod holds: the containers of a pod may start again at any time.
    ///
    /// A slice that something is wrong with does not keep the others back; the first error is returned, and
    /// [`CdiDir::is_ready`] tells them apart. Such a slice is left without a file rather than with an old one, in which
    /// there may be somebody else's instance by now.
    pub fn sync(&mut self, wanted: &[SliceDevice]) -> Result<(), CdiError> {
        let present = self.ours()?;
        self.ready.clear();
        let (mut keep, mut errors) = (BTreeSet::new(), Vec::new());
        if !wanted.is_empty() {
            match self.host.numbers() {
                Ok(numbers) => self.write_all(wanted, &numbers, &present, &mut keep, &mut errors),
                Err(error) => errors.push(error),
            }
        }
        for name in present.difference(&keep) {
            let path = self.folder.join(name);
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    errors.push(CdiError::Folder { what: "remove", path, source });
                }
                _ => {}
            }
        }
        errors.into_iter().next().map_or(Ok(()), Err)
    }

    /// Whether a container that is given the slice would start with it: as of the last [`CdiDir::sync`], its file is written
    /// and its device nodes are there.
    pub fn is_ready(&self, gpu: &GpuUuid, slice: &Slice) -> bool {
        self.ready.contains(&name::device(gpu, &slice.profile, slice.start))
    }

    /// What people should know when NVIDIA's CDI spec is not there, which is legitimate: as of the last [`CdiDir::sync`].
    pub fn notice(&self) -> Option<String> {
        self.base_is_missing.then(|| {
            let path = self.base.path().display();
            format!(
                "There is no CDI spec of NVIDIA's at {path}, so containers get their slices without the driver's libraries; \
                 make it with nvidia-ctk cdi generate --output={path}, or name another with --cdi-base."
            )
        })
    }

    fn write_all(
        &mut self,
        wanted: &[SliceDevice],
        numbers: &Numbers,
        present: &BTreeSet<String>,
        keep: &mut BTreeSet<String>,
        errors: &mut Vec<CdiError>,
    ) {
        let driver = file_name(DRIVER_DEVICE);
        let written = self.write_driver(numbers);
        // With an unusable new base, containers still start with what the last usable one said.
        let has_driver = written.is_ok() || present.contains(&driver);
        errors.extend(written.err());
        keep.insert(driver);
        for device in wanted {
            let name = device.device();
            match self.write_slice(device, numbers) {
                Ok(made) => {
                    keep.insert(file_name(&name));
                    if made.is_ok() && has_driver {
                        self.ready.insert(name);
                    }
                    errors.extend(made.err());
                }
                Err(error) => errors.push(error),
            }
        }
    }

    fn write_driver(&mut self, numbers: &Numbers) -> Result<(), CdiError> {
        self.base_is_missing = false;
        let base = self.base.read()?;
        self.base_is_missing = base.is_none();
        write(&self.folder, DRIVER_DEVICE, spec::driver(&self.host, numbers, base))
    }

    /// Writes a slice's file. Within: whether its device nodes could be made.
    fn write_slice(&self, device: &SliceDevice, numbers: &Numbers) -> Result<Result<(), CdiError>, CdiError> {
        let capabilities = device.capabilities(numbers)?;
        write(&self.folder, &device.device(), spec::slice(device, &capabilities, numbers))?;
        Ok(capabilities.iter().try_for_each(|capability| nodes::ensure(&self.host, capability)))
    }

    /// The names of our files, unfinished ones included.
    fn ours(&self) -> Result<BTreeSet<String>, CdiError> {
        let list = || -> io::Result<BTreeSet<String>> {
            let mut names = BTreeSet::new();
            for entry in fs::read_dir(&self.folder)? {
                let entry = entry?;
                // Ours are UTF-8.
                let Ok(name) = entry.file_name().into_string() else { continue };
                if name.starts_with(PREFIX) && !entry.file_type()?.is_dir() {
                    names.insert(name);
                }
            }
            Ok(names)
        };
        list().map_err(|source| CdiError::Folder { what: "list", path: self.folder.clone(), source })
    }
}

fn file_name(device: &str) -> String {
    format!("{PREFIX}{device}.json")
}

/// Writes a device's file unless it says the same already. The runtime sees the old file or the new one, never a part: the
/// rename is within the folder, which is also what makes runtimes look again.
fn write(folder: &Path, device: &str, content: serde_json::Result<Vec<u8>>) -> Result<(), CdiError> {
    let path = folder.join(file_name(device));
    let replace = || -> io::Result<()> {
        let content = content?;
        if fs::read(&path).is_ok_and(|present| present == content) {
            return Ok(());
        }
        let unfinished = folder.join(format!("{PREFIX}{device}.{UNFINISHED}"));
        fs::write(&unfinished, content)?;
        fs::rename(&unfinished, &path)
    };
    replace().map_err(|source| CdiError::Folder { what: "write", path: path.clone(), source })
}

#[cfg(test)]
mod tests;

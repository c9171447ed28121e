//! Why a container would not get its slice.

use std::io;
use std::path::PathBuf;

/// What is wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    /// The folder of CDI specs, or a file in it, cannot be read or changed.
    #[error("cannot {what} {}: {source}; {}", .path.display(), advice(.source))]
    Folder {
        /// What was tried.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// NVIDIA's CDI spec is there and cannot be used.
    #[error(
        "cannot use the CDI spec {}: {reason}; make it again with nvidia-ctk cdi generate --output={}, or name another with \
         --cdi-base",
        .path.display(), .path.display()
    )]
    Base {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A table of the kernel or the driver cannot be read.
    #[error(
        "cannot read {}: {source}; load the NVIDIA driver (nvidia-smi does), and let --proc-root name the host's /proc",
        .path.display()
    )]
    Table {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line of such a table is not understood.
    #[error("{} line {line} is {text:?}, not {expected}; report this with the driver's version", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What it says.
        text: String,
        /// What it should have been.
        expected: &'static str,
    },
    /// A table lacks what should be in it.
    #[error("{} does not list {name}; {advice}", .path.display())]
    Unlisted {
        /// The file.
        path: PathBuf,
        /// What is missing.
        name: String,
        /// What to do.
        advice: &'static str,
    },
    /// A device node cannot be made.
    #[error(
        "cannot make the device node {} ({major}:{minor}): {source}; give the agent CAP_MKNOD and the host's /dev (a hostPath \
         volume, named by --dev-root), or run nvidia-modprobe -f {attributes} on the node",
        .path.display()
    )]
    Node {
        /// The node.
        path: PathBuf,
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
        /// Where the driver describes it, on the host.
        attributes: String,
        /// What the system said.
        source: io::Error,
    },
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "mount the host's folder into the agent's container (hostPath, type DirectoryOrCreate), or name another with \
             --cdi-dir"
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            "mount the folder without readOnly and let the agent's user write there"
        }
        _ => "the folder must be a writable hostPath volume of the agent",
    }
}

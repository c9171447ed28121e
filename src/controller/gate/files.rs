//! A certificate that somebody else keeps, as cert-manager does: files that a Secret is mounted as.

use std::path::{Path, PathBuf};

use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use tracing::{info, warn};

use super::shown::{ShowError, Shown};

/// Why the files are of no use.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// One cannot be read, or the folder not be watched.
    #[error("{}: {source}; mount the Secret with the webhook's certificate there", .path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// They are no certificate with its key.
    #[error("{}: {source}", .folder.display())]
    Show {
        /// The folder.
        folder: PathBuf,
        /// What is wrong.
        source: ShowError,
    },
}

/// Shows what the files `tls.crt` and `tls.key` of a folder hold.
pub fn load(folder: &Path, shown: &Shown) -> Result<(), FilesError> {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read_to_string(&path).map_err(|source| FilesError::Read { path, source })
    };
    let (certificate, key) = (read("tls.crt")?, read("tls.key")?);
    shown.show(&certificate, &key).map_err(|source| FilesError::Show { folder: folder.to_owned(), source })
}

/// Shows what they hold from now on, too. Ends only with an error.
pub async fn follow(folder: PathBuf, shown: Shown) -> FilesError {
    let broken = |source| FilesError::Read { path: folder.clone(), source };
    // The kubelet renames a link to a folder with all the files; others write the files.
    let mask = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::CLOSE_WRITE;
    let mut events = match watch(&folder, mask) {
        Ok(events) => events,
        Err(source) => return broken(source),
    };
    // What has changed since they were loaded first.
    let mut before = contents(&folder);
    loop {
        match load(&folder, &shown) {
            Ok(()) => {}
            // Half of the change, or a bad one: what was shown before still is.
            Err(error) => warn!(%error, "the gate webhook's certificate is not taken up"),
        }
        loop {
            match events.next().await {
                Some(Ok(_)) => {}
                Some(Err(source)) => return broken(source),
                None => return broken(std::io::Error::other("the watch has ended")),
            }
            let after = contents(&folder);
            if after != before {
                before = after;
                break;
            }
        }
        info!(folder = %folder.display(), "the gate webhook's certificate has changed");
    }
}

fn watch(folder: &Path, mask: WatchMask) -> std::io::Result<inotify::EventStream<[u8; 4096]>> {
    let inotify = Inotify::init()?;
    inotify.watches().add(folder, mask)?;
    inotify.into_event_stream([0; 4096])
}

fn contents(folder: &Path) -> [Option<Vec<u8>>; 2] {
    ["tls.crt", "tls.key"].map(|name| std::fs::read(folder.join(name)).ok())
}

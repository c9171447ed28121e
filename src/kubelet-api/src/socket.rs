//! gRPC over Unix sockets.

use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint, Server};

/// Why a socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The path cannot be dialed.
    #[error("cannot dial {path:?}: the path of a Unix socket must be UTF-8; choose another folder")]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {}: {source}; the folder must exist and be writable (a hostPath volume)", .path.display())]
    Listen {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something that is not a socket is in the way, and is not ours to remove.
    #[error("cannot listen on {}: a file that is not a socket is in the way; remove it", .path.display())]
    InTheWay {
        /// The path.
        path: PathBuf,
    },
}

/// A channel to the server on a socket. Nothing is dialed before the first call, and a connection that was lost is dialed
/// again by the next one; a call on a socket that does not exist or does not answer within `connect_timeout` is Unavailable.
///
/// Must be called within a tokio runtime.
pub fn channel(path: &Path, connect_timeout: Duration) -> Result<Channel, SocketError> {
    let refused = || SocketError::Path { path: path.to_owned() };
    let address = format!("unix:{}", path.to_str().ok_or_else(refused)?);
    let endpoint = Endpoint::from_shared(address).map_err(|_| refused())?;
    Ok(endpoint.connect_timeout(connect_timeout).connect_lazy())
}

/// Listens on a socket, in place of one that a process left behind or still serves: as with every server of the kubelet's
/// folders, the last one wins. Clients can dial from now on.
///
/// Must be called within a tokio runtime.
pub fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    let fail = |source| SocketError::Listen { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path).map_err(fail)?,
        Ok(_) => return Err(SocketError::InTheWay { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fail(error)),
    }
    UnixListener::bind(path).map_err(fail)
}

/// Serves until `shutdown` is ready and the calls in flight have ended. The file of the socket stays: it may be another's by
/// then.
pub async fn serve(
    listener: UnixListener,
    services: Routes,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let incoming = UnixListenerStream::new(listener);
    Server::builder().add_routes(services).serve_with_incoming_shutdown(incoming, shutdown).await
}

#[cfg(test)]
mod tests;

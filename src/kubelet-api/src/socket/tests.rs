use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use tokio::sync::oneshot;
use tonic::{Code, Request, Response, Status};

use super::*;
use crate::device_plugin::{Empty, RegisterRequest, Registration, RegistrationClient, RegistrationServer};

/// Takes the name of one resource only.
struct Only(&'static str);

#[tonic::async_trait]
impl Registration for Only {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        if request.into_inner().resource_name == self.0 {
            Ok(Response::new(Empty {}))
        } else {
            Err(Status::invalid_argument(self.0))
        }
    }
}

fn start(path: &Path, only: &'static str) -> (oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
    let listener = listen(path).unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let services = Routes::new(RegistrationServer::new(Only(only)));
    let served =
        tokio::spawn(async move { serve(listener, services, async { drop(stopped.await) }).await.unwrap() });
    (stop, served)
}

fn request(resource: &str) -> RegisterRequest {
    RegisterRequest { resource_name: resource.into(), ..RegisterRequest::default() }
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_channel_outlives_the_server_that_it_was_connected_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.sock");
    let mut client = RegistrationClient::new(channel(&path, SECOND).unwrap());
    assert_eq!(client.register(request("a")).await.unwrap_err().code(), Code::Unavailable);

    let (stop, served) = start(&path, "a");
    client.register(request("a")).await.unwrap();
    assert_eq!(client.register(request("b")).await.unwrap_err().message(), "a");

    stop.send(()).unwrap();
    served.await.unwrap();
    assert!(path.exists(), "the next server must find a socket that was left behind");
    let (_stop, _) = start(&path, "b");
    // The first call may still meet the end of the old connection.
    while client.register(request("b")).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_file_that_is_not_a_socket_is_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.sock");
    fs::write(&path, "precious").unwrap();
    let error = listen(&path).unwrap_err();
    assert!(matches!(error, SocketError::InTheWay { .. }), "{error}");
    assert!(error.to_string().contains("s.sock"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn a_folder_that_does_not_exist_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = listen(&folder.path().join("missing/s.sock")).unwrap_err();
    assert!(error.to_string().contains("missing/s.sock"), "{error}");
}

#[tokio::test]
async fn a_path_that_cannot_be_dialed_is_refused() {
    let path = Path::new(OsStr::from_bytes(b"/tmp/\xff"));
    assert!(matches!(channel(path, SECOND), Err(SocketError::Path { .. })));
}

use std::future::Future;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// What stands for a process: all of its tasks and connections end at once when it is killed, as gRPC servers that are
/// dropped do not.
pub struct Island(Option<Runtime>);

impl Island {
    pub fn new(name: &str) -> Self {
        Self(Some(
            Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build().unwrap(),
        ))
    }

    pub fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.0.as_ref().unwrap().spawn(future)
    }

    /// Kills it. Its sockets are closed when this returns; their files stay, as after SIGKILL.
    pub async fn kill(mut self) {
        let runtime = self.0.take().unwrap();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(10))).await.unwrap();
    }
}

impl Drop for Island {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

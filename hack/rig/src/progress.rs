//! Long steps show that they are alive.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::Result;

/// Runs a step; when it takes longer than a moment, says why one waits.
pub async fn explained<T>(progress: bool, why: &str, step: impl Future<Output = T>) -> T {
    let mut step = std::pin::pin!(step);
    if let Ok(done) = tokio::time::timeout(Duration::from_millis(300), &mut step).await {
        return done;
    }
    say(progress, &format!("{why}: waiting for it"));
    step.await
}

/// Runs a step and reports how long it took; while it takes long, reports that it is still going on.
pub async fn timed<T>(progress: bool, name: &str, step: impl Future<Output = Result<T>>) -> Result<T> {
    let started = Instant::now();
    let mut step = std::pin::pin!(step);
    loop {
        match tokio::time::timeout(Duration::from_secs(10), &mut step).await {
            Ok(result) => {
                if result.is_ok() {
                    say(
                        progress,
                        &format!("{name:<24} ready after {:.1} s", started.elapsed().as_secs_f64()),
                    );
                }
                return result;
            }
            Err(_) => say(progress, &format!("{name:<24} not ready yet, {} s", started.elapsed().as_secs())),
        }
    }
}

/// Says something on stderr, where it is not mistaken for a result.
pub fn say(progress: bool, line: &str) {
    if progress {
        eprintln!("{line}");
    }
}

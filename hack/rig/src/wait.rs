//! Waiting for conditions.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const POLL: Duration = Duration::from_millis(50);

/// What a condition can answer: yes or no, or the value that was waited for.
pub trait Found {
    /// What is found.
    type Value;
    /// The value, if it is there.
    fn found(self) -> Option<Self::Value>;
}

impl Found for bool {
    type Value = ();
    fn found(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Found for Option<T> {
    type Value = T;
    fn found(self) -> Self {
        self
    }
}

/// Waits until a condition holds, for no longer than `limit`; errors count as "not yet", and the last one is told.
pub async fn until<T: Found, F: Future<Output = Result<T>>>(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> F,
) -> Result<T::Value> {
    let deadline = Instant::now() + limit;
    loop {
        let outcome = condition().await;
        let late = Instant::now() > deadline;
        match outcome {
            Ok(value) => {
                if let Some(found) = value.found() {
                    return Ok(found);
                }
                if late {
                    bail!("waited in vain until {what}");
                }
            }
            Err(error) if late => return Err(error).with_context(|| format!("waited in vain until {what}")),
            Err(_) => {}
        }
        tokio::time::sleep(POLL).await;
    }
}

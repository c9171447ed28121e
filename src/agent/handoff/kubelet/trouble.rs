//! What stands between agent and kubelet, told once it has lasted.

use std::time::{Duration, Instant};

/// How long something may be wrong before it is told. A kubelet that restarts is back sooner, and others may use up its
/// answers for a moment; a node that says that it is not ready gets no more work, and loses what has not begun.
const PATIENCE: Duration = Duration::from_secs(5);

/// One kind of trouble.
#[derive(Debug, Default)]
pub struct Trouble(Option<(Instant, String)>);

impl Trouble {
    /// Sets what is wrong; `None` when nothing is. Whether it was well before.
    pub fn set(&mut self, wrong: Option<String>) -> bool {
        let before = self.0.take();
        let is_new = before.is_none() && wrong.is_some();
        let since = before.map_or_else(Instant::now, |(since, _)| since);
        self.0 = wrong.map(|wrong| (since, wrong));
        is_new
    }

    /// Whether something is wrong.
    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// What is wrong, if it has been for long.
    pub fn lasting(&self) -> Option<&str> {
        self.0.as_ref().filter(|(since, _)| since.elapsed() >= PATIENCE).map(|(_, wrong)| wrong.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_told_once_it_has_lasted_and_until_it_is_over() {
        let mut trouble = Trouble::default();
        assert!(trouble.set(Some("no kubelet".to_owned())));
        assert!(trouble.is_there());
        assert_eq!(trouble.lasting(), None);
        let long_ago = Instant::now().checked_sub(PATIENCE).unwrap();
        trouble.0 = Some((long_ago, "no kubelet".to_owned()));
        assert!(!trouble.set(Some("refused".to_owned())), "one thing after the other is one trouble");
        assert_eq!(trouble.lasting(), Some("refused"));
        assert!(!trouble.set(None));
        assert_eq!((trouble.is_there(), trouble.lasting()), (false, None));
    }
}

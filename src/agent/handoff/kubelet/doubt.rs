//! Whether the kubelet still takes its devices from us.
//!
//! Another plugin that registers for a resource of ours takes our place without a word: both lists are followed, the last one
//! told counts, and Allocate goes to the other. When that one goes, its end disconnects the resource; our list is followed
//! on, but no device is given any more (`devicemanager/manager.go`, PluginDisconnected). Either way it helps to register
//! again, which costs nothing as long as no list ends. What a look here does not see, since our next list hides it, the
//! registrar does when another plugin has come or gone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use slicegate_core::profile::ProfileName;

/// How long the kubelet may take to show what it was told; it does within milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// First pause between two registrations of a profile; it doubles each time, since the other one may do the same.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest such pause, and how long all must have been well for it to begin anew.
const MAX_PAUSE: Duration = Duration::from_mins(5);

/// What is doubted, by profile.
#[derive(Debug, Default)]
pub struct Doubts(BTreeMap<ProfileName, Doubt>);

#[derive(Debug)]
struct Doubt {
    /// Since when it shows something else than what it was told; `None` when it shows that.
    since: Option<Instant>,
    /// What it was told.
    told: BTreeSet<u32>,
    /// Before this nothing is registered again, and the pause after that.
    next: Instant,
    pause: Duration,
}

impl Doubts {
    /// The profiles to register again: those of which the kubelet shows another's devices, or for long not ours. `told` and
    /// `healthy` are the healthy devices by profile, as it was told them and as it shows them; `strange` are others', written
    /// as `<id> of <resource>`.
    pub fn judge(
        &mut self,
        now: Instant,
        told: &BTreeMap<ProfileName, BTreeSet<u32>>,
        healthy: &BTreeMap<ProfileName, BTreeSet<u32>>,
        strange: &BTreeSet<String>,
    ) -> Vec<ProfileName> {
        let nothing = BTreeSet::new();
        let mut again = Vec::new();
        for (profile, told) in told {
            let of_it = format!(" of {}", profile.resource());
            let is_taken = strange.iter().any(|device| device.ends_with(&of_it));
            if !is_taken && healthy.get(profile).unwrap_or(&nothing) == told {
                if let Some(doubt) = self.0.get_mut(profile) {
                    doubt.since = None;
                }
                continue;
            }
            let fresh = || Doubt { since: None, told: told.clone(), next: now, pause: PAUSE };
            let doubt = self.0.entry(profile.clone()).or_insert_with(fresh);
            if doubt.told != *told {
                (doubt.told, doubt.since) = (told.clone(), None);
            }
            let since = *doubt.since.get_or_insert(now);
            if (is_taken || now.duration_since(since) >= PATIENCE) && now >= doubt.next {
                (doubt.next, doubt.pause) = (now + doubt.pause, (doubt.pause * 2).min(MAX_PAUSE));
                again.push(profile.clone());
            }
        }
        self.0.retain(|_, doubt| doubt.since.is_some() || now.duration_since(doubt.next) < MAX_PAUSE);
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(numbers: &[u32]) -> BTreeMap<ProfileName, BTreeSet<u32>> {
        BTreeMap::from([("1g.10gb+me".parse().unwrap(), numbers.iter().copied().collect())])
    }

    /// The seconds, of the first 40, in which a registration is due.
    fn due(shown: impl Fn(u64) -> (&'static [u32], bool)) -> Vec<u64> {
        let (mut doubts, begin) = (Doubts::default(), Instant::now());
        let mut is_due = |second: u64| {
            let (shown, is_taken) = shown(second);
            let strange = is_taken.then(|| "GPU-1 of nvidia.com/mig-1g.10gb.me".to_owned());
            let now = begin + Duration::from_secs(second);
            !doubts.judge(now, &one(&[0, 1]), &one(shown), &strange.into_iter().collect()).is_empty()
        };
        let mut seconds = Vec::new();
        for second in 0..40 {
            if is_due(second) {
                seconds.push(second);
            }
        }
        seconds
    }

    #[test]
    fn a_kubelet_that_shows_what_it_was_told_is_left_alone() {
        assert!(due(|_| (&[0, 1], false)).is_empty());
    }

    #[test]
    fn a_kubelet_that_takes_its_time_is_left_alone() {
        assert!(due(|second| (if second % 6 < 5 { &[0] } else { &[0, 1] }, false)).is_empty());
    }

    #[test]
    fn one_that_does_not_show_it_is_asked_again_after_longer_and_longer_pauses() {
        assert_eq!(due(|_| (&[], false)), [5, 6, 8, 12, 20, 36]);
    }

    #[test]
    fn one_that_shows_anothers_devices_is_asked_at_once() {
        assert_eq!(due(|second| (&[0, 1], second == 3)), [3]);
        assert_eq!(due(|_| (&[], true)), [0, 1, 3, 7, 15, 31]);
    }

    #[test]
    fn another_list_is_another_question() {
        let (mut doubts, begin) = (Doubts::default(), Instant::now());
        let mut judge = |second, told: &[u32]| {
            let now = begin + Duration::from_secs(second);
            doubts.judge(now, &one(told), &one(&[]), &BTreeSet::new()).len()
        };
        assert_eq!((judge(0, &[0]), judge(4, &[0, 1]), judge(6, &[0, 1]), judge(9, &[0, 1])), (0, 0, 0, 1));
    }
}

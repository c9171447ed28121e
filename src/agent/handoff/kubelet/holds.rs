//! Whether a pod still has what it was given, by the kubelet's word.
//!
//! List names pods and leaves out plain init containers; the checkpoint has these, and with them pods that are over, until the
//! kubelet writes it again, which it does when it is told a list of devices. So who is in the list has what he has; who is in
//! neither has nothing; and for who is in the checkpoint alone, the kubelet is told the list again, and what it writes then
//! counts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use slicegate_core::tokens::Token;

use super::book::Note;
use super::resources::{Seen, Stamp};

/// How long the kubelet may take to note what it was answered. It does so in the same call, so this is past any pause of it.
const GRACE: Duration = Duration::from_secs(10);
/// Longest pause before the kubelet is made to write its checkpoint again for a pod that may have only an init container.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// What is known of one binding after a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A pod has it; its name, if the kubelet says it.
    Has(Option<String>),
    /// Nothing new: the look may be older than the answer.
    Open,
    /// The checkpoint must be written again before one can tell.
    Ask,
    /// It is over.
    Over,
}

/// The questions that made the kubelet write its checkpoint again.
#[derive(Debug, Default)]
pub struct Questions(BTreeMap<Token, Question>);

#[derive(Clone, Copy, Debug)]
struct Question {
    /// The checkpoint as it was when the kubelet was asked.
    stamp: Stamp,
    at: Instant,
    pause: Duration,
}

impl Questions {
    /// What is known of a binding after a look.
    pub fn judge(&mut self, token: &Token, note: &Note, seen: &Seen) -> Verdict {
        if let Some(pod) = seen.pods.get(token) {
            self.0.remove(token);
            return Verdict::Has(Some(pod.clone()));
        }
        if note.since >= seen.begun {
            return Verdict::Open;
        }
        if !seen.checkpoint.contains_key(token) {
            self.0.remove(token);
            // A checkpoint that cannot be read says nothing.
            let is_known = seen.checkpoint_error.is_none();
            let late = seen.begun.duration_since(note.since) > GRACE;
            return if is_known && (note.confirmed || late) { Verdict::Over } else { Verdict::Open };
        }
        let answered = self.0.get(token).copied().filter(|question| question.stamp != seen.stamp);
        match (answered, self.0.get(token)) {
            (Some(question), _) if seen.begun < question.at + question.pause => Verdict::Has(None),
            (None, Some(_)) => Verdict::Open,
            (Some(_), _) | (None, None) => Verdict::Ask,
        }
    }

    /// Notes that the kubelet is asked about a binding now.
    pub fn ask(&mut self, token: &Token, seen: &Seen) {
        let pause = self.0.get(token).map_or(Duration::from_secs(1), |q| (q.pause * 2).min(MAX_PAUSE));
        self.0.insert(token.clone(), Question { stamp: seen.stamp, at: Instant::now(), pause });
    }

    /// Forgets the bindings that are no more.
    pub fn retain(&mut self, exists: impl Fn(&Token) -> bool) {
        self.0.retain(|token, _| exists(token));
    }
}

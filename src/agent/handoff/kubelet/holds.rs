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

    /// Whether something was asked that this look was too early to answer.
    pub fn wait(&self, seen: &Seen) -> bool {
        self.0.values().any(|question| question.stamp == seen.stamp)
    }

    /// Forgets the bindings that are no more.
    pub fn retain(&mut self, exists: impl Fn(&Token) -> bool) {
        self.0.retain(|token, _| exists(token));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::SystemTime;

    use slicegate_kubelet_api::device_plugin::ContainerAllocateResponse;

    use super::super::resources::Recorded;
    use super::*;

    fn token() -> Token {
        "1g.10gb/4".parse().unwrap()
    }

    /// A binding so many seconds old.
    fn note(age: u64, confirmed: bool) -> Note {
        let since = Instant::now().checked_sub(Duration::from_secs(age)).unwrap();
        Note { since, confirmed, pod: None, uuid: "MIG-1".to_owned(), over: None }
    }

    /// A look that begins now.
    fn seen(listed: bool, recorded: bool, writing: u64) -> Seen {
        let response = Recorded { pod_uid: "uid".to_owned(), response: ContainerAllocateResponse::default() };
        Seen {
            begun: Instant::now(),
            healthy: BTreeMap::new(),
            strange: BTreeSet::new(),
            pods: listed.then(|| (token(), "team/one".to_owned())).into_iter().collect(),
            whole_gpu: BTreeSet::new(),
            checkpoint: recorded.then(|| (token(), response)).into_iter().collect(),
            stamp: Some((SystemTime::UNIX_EPOCH, writing)),
            checkpoint_error: None,
        }
    }

    #[test]
    fn who_is_listed_has_it() {
        let verdict = Questions::default().judge(&token(), &note(60, true), &seen(true, false, 0));
        assert_eq!(verdict, Verdict::Has(Some("team/one".to_owned())));
    }

    #[test]
    fn a_look_that_is_older_than_the_answer_says_nothing() {
        let look = seen(false, false, 0);
        let verdict = Questions::default().judge(&token(), &note(0, true), &look);
        assert_eq!(verdict, Verdict::Open);
    }

    #[test]
    fn who_is_nowhere_has_nothing_once_the_kubelet_has_had_time_to_note_it() {
        let judge = |age, confirmed| {
            Questions::default().judge(&token(), &note(age, confirmed), &seen(false, false, 0))
        };
        assert_eq!(judge(1, true), Verdict::Over);
        assert_eq!(judge(1, false), Verdict::Open);
        assert_eq!(judge(11, false), Verdict::Over);
    }

    #[test]
    fn a_checkpoint_that_cannot_be_read_frees_nobody() {
        let mut look = seen(false, false, 0);
        look.checkpoint_error = Some("corrupt".to_owned());
        assert_eq!(Questions::default().judge(&token(), &note(60, true), &look), Verdict::Open);
    }

    #[test]
    fn who_is_in_the_checkpoint_alone_has_it_if_the_kubelet_writes_it_again() {
        let (mut questions, note) = (Questions::default(), note(60, true));
        assert_eq!(questions.judge(&token(), &note, &seen(false, true, 0)), Verdict::Ask);
        questions.ask(&token(), &seen(false, true, 0));
        assert!(questions.wait(&seen(false, true, 0)) && !questions.wait(&seen(false, true, 1)));
        assert_eq!(
            questions.judge(&token(), &note, &seen(false, true, 0)),
            Verdict::Open,
            "not written again yet"
        );
        assert_eq!(questions.judge(&token(), &note, &seen(false, true, 1)), Verdict::Has(None));
        assert_eq!(questions.judge(&token(), &note, &seen(false, false, 2)), Verdict::Over);
        assert_eq!(
            questions.judge(&token(), &note, &seen(false, true, 2)),
            Verdict::Ask,
            "that question has been answered"
        );
    }

    #[test]
    fn the_kubelet_is_asked_again_after_longer_and_longer_pauses() {
        let mut questions = Questions::default();
        let mut pauses = Vec::new();
        for writing in 0..6 {
            questions.ask(&token(), &seen(false, true, writing));
            pauses.push(questions.0[&token()].pause.as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 10, 10]);
        let question = questions.0[&token()];
        let late = question.at + question.pause;
        let look = Seen { begun: late, ..seen(false, true, 6) };
        assert_eq!(questions.judge(&token(), &note(60, true), &look), Verdict::Ask);
        questions.retain(|_| false);
        assert!(questions.0.is_empty());
    }
}

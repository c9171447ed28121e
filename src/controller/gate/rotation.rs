//! When certificates are made and taken into use: decisions only.
//!
//! A serving certificate is signed by an authority that signs nothing else. The next pair is made well before the current one
//! expires, and its authority is added to what the API server trusts; only when that has been so for a while is the next
//! certificate served. So at every moment the API server trusts whichever certificate a replica of the controller shows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::ByteString;
use slicegate_core::time::Timestamp;

use super::certificate::{Certificate, CertificateError, Issued};

/// Key of the Secret for the authorities that the API server is to trust.
const AUTHORITIES: &str = "ca.crt";
/// Keys of the Secret for what is served, the same as in a Secret of type `kubernetes.io/tls`.
const CURRENT: (&str, &str) = ("tls.crt", "tls.key");
/// Keys of the Secret for what is served next.
const NEXT: (&str, &str) = ("next.crt", "next.key");

/// How long things last.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// A certificate. The next one is made when a third of that is left.
    pub certificate: Duration,
    /// How long an authority is trusted before its certificate is served: far longer than API servers take to notice a
    /// change of their webhooks.
    pub trust: Duration,
}

/// A certificate with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The certificate.
    pub certificate: Certificate,
    /// The key, PEM.
    pub key: String,
}

/// What the Secret holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    trusted: Vec<Certificate>,
    /// What is served.
    pub current: Pair,
    next: Option<Pair>,
}

/// Why a Secret is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// A key is not there, or no text.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A certificate cannot be read.
    #[error("{key}: {source}")]
    Certificate {
        /// The key of the Secret.
        key: &'static str,
        /// What is wrong.
        source: CertificateError,
    },
}

impl Held {
    /// A first pair. What else is trusted stays trusted, so that a replica that still serves it does no harm.
    pub fn begin(issued: Issued, trusted: Vec<Certificate>) -> Self {
        let mut held = Self { trusted, current: pair(&issued), next: None };
        held.trusted.push(issued.authority);
        held
    }

    /// The same with the pair that is served next.
    #[must_use]
    pub fn stage(mut self, issued: Issued) -> Self {
        self.next = Some(pair(&issued));
        self.trusted.push(issued.authority);
        self
    }

    /// The same with the next pair served.
    #[must_use]
    pub fn promote(mut self) -> Self {
        if let Some(next) = self.next.take() {
            self.current = next;
        }
        self
    }

    /// The same without authorities whose time is over.
    #[must_use]
    pub fn prune(mut self, now: Timestamp) -> Self {
        self.trusted.retain(|authority| authority.expires > now);
        self
    }

    /// Whether what is served is still valid.
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.current.certificate.expires > now
    }

    /// The authorities that are still valid.
    pub fn trusted(&self, now: Timestamp) -> Vec<Certificate> {
        self.trusted.iter().filter(|authority| authority.expires > now).cloned().collect()
    }

    /// What the API server is to trust, PEM.
    pub fn bundle(&self) -> String {
        self.trusted.iter().map(|authority| authority.pem.as_str()).collect()
    }

    /// Reads a Secret.
    pub fn read(data: &BTreeMap<String, ByteString>) -> Result<Self, Unusable> {
        let certificates = |key| {
            let read = Certificate::read_all(text(data, key)?);
            read.map_err(|source| Unusable::Certificate { key, source })
        };
        let pair = |(certificate, key)| {
            let read = Certificate::read(text(data, certificate)?);
            let read = read.map_err(|source| Unusable::Certificate { key: certificate, source })?;
            Ok(Pair { certificate: read, key: text(data, key)?.to_owned() })
        };
        Ok(Self {
            trusted: certificates(AUTHORITIES)?,
            current: pair(CURRENT)?,
            next: data.contains_key(NEXT.0).then(|| pair(NEXT)).transpose()?,
        })
    }

    /// What a Secret is to hold.
    pub fn data(&self) -> BTreeMap<String, ByteString> {
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        let mut data = BTreeMap::from([(AUTHORITIES.to_owned(), bytes(&self.bundle()))]);
        for ((certificate, key), pair) in [(CURRENT, Some(&self.current)), (NEXT, self.next.as_ref())] {
            let Some(pair) = pair else { continue };
            data.insert(certificate.to_owned(), bytes(&pair.certificate.pem));
            data.insert(key.to_owned(), bytes(&pair.key));
        }
        data
    }
}

fn pair(issued: &Issued) -> Pair {
    Pair { certificate: issued.certificate.clone(), key: issued.key.clone() }
}

fn text<'data>(data: &'data BTreeMap<String, ByteString>, key: &'static str) -> Result<&'data str, Unusable> {
    let bytes = data.get(key).ok_or(Unusable::Missing(key))?;
    std::str::from_utf8(&bytes.0).map_err(|_| Unusable::Missing(key))
}

/// What is to be done with the Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing before that time, if nothing changes.
    Keep(Timestamp),
    /// Make a pair for these names and serve it at once: nothing that is there is of use.
    Begin(BTreeSet<String>),
    /// Make the next pair.
    Stage,
    /// Serve the next pair.
    Promote,
    /// Trust no longer what has expired.
    Prune,
}

/// Decides. `hosts` are the names and addresses by which the API server calls; `published` says since when the API server has
/// been told to trust all that the Secret says.
pub fn step(
    held: Option<&Held>,
    hosts: &BTreeSet<String>,
    published: Option<Timestamp>,
    now: Timestamp,
    lifetimes: &Lifetimes,
) -> Step {
    let Some(held) = held else { return Step::Begin(hosts.clone()) };
    let current = &held.current.certificate;
    if !hosts.is_subset(&current.hosts) {
        // The old names stay: replicas that are called by them may still be running, and two replicas that each replaced the
        // other's certificate would never come to an end.
        return Step::Begin(hosts.union(&current.hosts).cloned().collect());
    }
    if let Some(next) = &held.next {
        // What is expired is refused, so there is nothing to wait for.
        let due = if held.is_valid(now) { published.unwrap_or(now) + lifetimes.trust } else { now };
        if next.certificate.expires <= now {
            return Step::Begin(hosts.clone());
        }
        return if now >= due { Step::Promote } else { Step::Keep(due.min(current.expires)) };
    }
    if !held.is_valid(now) {
        return Step::Begin(hosts.clone());
    }
    let renewal = current.expires.0 - i64::try_from(lifetimes.certificate.as_millis() / 3).unwrap_or(0);
    if now.0 >= renewal {
        return Step::Stage;
    }
    let first_to_expire = held.trusted.iter().map(|authority| authority.expires).min();
    match first_to_expire {
        Some(expires) if expires <= now => Step::Prune,
        Some(expires) => Step::Keep(expires.min(Timestamp(renewal))),
        None => Step::Keep(Timestamp(renewal)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::certificate::issue;
    use super::*;

    const DAY: Duration = Duration::from_hours(24);
    const LIFETIMES: Lifetimes =
        Lifetimes { certificate: Duration::from_hours(90 * 24), trust: Duration::from_mins(5) };
    const START: Timestamp = Timestamp(1_800_000_000_000);

    fn hosts(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn issued(now: Timestamp) -> Issued {
        issue(&hosts(&["a.svc"]), now, LIFETIMES.certificate).unwrap()
    }

    fn decide(held: &Held, published: Option<Timestamp>, now: Timestamp) -> Step {
        step(Some(held), &hosts(&["a.svc"]), published, now, &LIFETIMES)
    }

    #[test]
    fn a_certificate_is_followed_by_one_that_was_trusted_for_a_while_before() {
        let wanted = hosts(&["a.svc"]);
        assert_eq!(step(None, &wanted, None, START, &LIFETIMES), Step::Begin(wanted));
        let held = Held::begin(issued(START), Vec::new());
        let renewal = START + 60 * DAY;
        assert_eq!(decide(&held, Some(START), START), Step::Keep(renewal));
        assert_eq!(decide(&held, Some(START), renewal), Step::Stage);

        let staged = held.clone().stage(issued(renewal));
        assert_eq!(staged.current, held.current);
        assert!(staged.bundle().starts_with(&held.bundle()), "the old authority is still trusted");
        // However long ago it was made: what counts is when the API server was told.
        let told = renewal + DAY;
        let due = told + LIFETIMES.trust;
        assert_eq!(decide(&staged, None, renewal + DAY), Step::Keep(due));
        assert_eq!(decide(&staged, Some(told), told), Step::Keep(due));
        assert_eq!(decide(&staged, Some(told), due), Step::Promote);

        let promoted = staged.clone().promote();
        assert_ne!(promoted.current, staged.current);
        assert_eq!(promoted.bundle(), staged.bundle(), "another replica may still serve the old one");
        let old_expires = START + 90 * DAY;
        assert_eq!(decide(&promoted, Some(told), due), Step::Keep(old_expires));
        assert_eq!(decide(&promoted, Some(told), old_expires), Step::Prune);
        let pruned = promoted.clone().prune(old_expires);
        assert_eq!(pruned.trusted.len(), 1);
        assert_eq!(decide(&pruned, None, old_expires), Step::Keep(renewal + 60 * DAY));
    }

    #[test]
    fn after_a_long_absence_what_is_expired_is_replaced_without_waiting() {
        let held = Held::begin(issued(START), Vec::new());
        let late = START + 91 * DAY;
        assert_eq!(decide(&held, None, late), Step::Begin(hosts(&["a.svc"])));
        let staged = held.stage(issued(START + 89 * DAY));
        assert_eq!(decide(&staged, None, late), Step::Promote);
        assert_eq!(decide(&staged, None, START + 200 * DAY), Step::Begin(hosts(&["a.svc"])));
    }

    #[test]
    fn a_name_that_the_certificate_lacks_is_added_to_those_that_it_has() {
        let held = Held::begin(issued(START), Vec::new());
        let step = step(Some(&held), &hosts(&["b.svc"]), Some(START), START, &LIFETIMES);
        assert_eq!(step, Step::Begin(hosts(&["a.svc", "b.svc"])));
    }

    #[test]
    fn a_secret_is_read_as_it_was_written() {
        let held = Held::begin(issued(START), Vec::new());
        assert_eq!(Held::read(&held.data()).unwrap(), held);
        let staged = held.stage(issued(START + DAY));
        assert_eq!(Held::read(&staged.data()).unwrap(), staged);
    }

    #[test]
    fn what_a_secret_lacks_is_named() {
        let mut data = Held::begin(issued(START), Vec::new()).data();
        data.insert(
            "ca.crt".to_owned(),
            ByteString(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----".to_vec()),
        );
        assert!(Held::read(&data).unwrap_err().to_string().starts_with("ca.crt: not an X.509 certificate"));
        data.remove("ca.crt");
        assert_eq!(Held::read(&data).unwrap_err().to_string(), "ca.crt is missing");
    }
}

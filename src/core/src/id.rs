//! Names that must not be mixed up. Each wraps a shared string, so that a clone costs a counter.

use std::fmt;
use std::sync::Arc;

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Wraps a name that the API server or NVML has validated.
            pub fn new(name: impl Into<Arc<str>>) -> Self {
                Self(name.into())
            }
            /// The name as it is written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl From<&str> for $type {
            fn from(name: &str) -> Self {
                Self::new(name)
            }
        }
        impl From<String> for $type {
            fn from(name: String) -> Self {
                Self::new(name)
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.as_str())
            }
        }
    };
}

name!(
    /// The name of a Node and of the MIGNode that belongs to it.
    NodeName
);
name!(
    /// A GPU's UUID as NVML prints it (`GPU-…`).
    GpuUuid
);
name!(
    /// A Workload's `metadata.uid`: the identity of a claim's owner.
    WorkloadUid
);
name!(
    /// The name of a pod set within its Workload.
    PodSetName
);
name!(
    /// One quota reservation of one Workload. Kueue names none, so it is made of the reservation's time and content.
    Attempt
);
name!(
    /// A pod's `metadata.uid`.
    PodUid
);

/// Namespace, name and uid of a Workload: enough to find it, and to see that it is still the same one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkloadKey {
    /// The Workload's namespace.
    pub namespace: Arc<str>,
    /// The Workload's name.
    pub name: Arc<str>,
    /// The Workload's uid.
    pub uid: WorkloadUid,
}

impl fmt::Display for WorkloadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

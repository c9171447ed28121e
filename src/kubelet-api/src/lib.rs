//! The kubelet's gRPC interfaces as a node agent meets them, both ends, over Unix sockets.
//!
//! * [`device_plugin`], `v1beta1.Registration` and `v1beta1.DevicePlugin`.
//! * [`pod_resources`], `v1.PodResourcesLister`.
//! * [`checkpoint`], the file in which the kubelet keeps what it gave to whom.
//! * [`socket`], dialing and serving a Unix socket.
//!
//! Field numbers and names of calls are facts of the interface, from Kubernetes 1.36
//! (`staging/src/k8s.io/kubelet/pkg/apis/`); the words are ours. protoc is not needed.

pub mod checkpoint;
pub mod device_plugin;
pub mod pod_resources;
pub mod socket;

pub use tonic;

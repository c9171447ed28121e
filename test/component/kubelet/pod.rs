use slicegate_kubelet_api::device_plugin::ContainerAllocateResponse;

/// A pod as the kubelet admits it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub containers: Vec<Container>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    pub kind: Kind,
    pub name: String,
    pub limits: Vec<(String, usize)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Ends before the next one starts; PodResources does not show it.
    Init,
    /// An init container that goes on running.
    Sidecar,
    App,
}

impl Pod {
    /// A pod without containers, whose uid is its name.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into(), uid: name.into(), containers: Vec::new() }
    }

    pub fn with(mut self, kind: Kind, name: &str, resource: &str, devices: usize) -> Self {
        let limits = vec![(resource.to_owned(), devices)];
        self.containers.push(Container { kind, name: name.into(), limits });
        // Stable: sidecars and init containers keep their order, before the app's.
        self.containers.sort_by_key(|container| container.kind == Kind::App);
        self
    }

    /// With an app container that asks for devices.
    pub fn app(self, name: &str, resource: &str, devices: usize) -> Self {
        self.with(Kind::App, name, resource, devices)
    }
}

/// What a container holds after its admission.
#[derive(Clone, Debug, PartialEq)]
pub struct Given {
    pub container: String,
    pub resource: String,
    pub devices: Vec<String>,
    pub response: ContainerAllocateResponse,
}

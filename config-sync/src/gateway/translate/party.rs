//! The two ends of a reference between objects.

/// The object that refers to another: its kind and namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Party<'o> {
    pub(super) group: &'o str,
    pub(super) kind: &'o str,
    pub(super) namespace: &'o str,
}

/// The object that is referred to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'o> {
    pub(super) group: &'o str,
    pub(super) kind: &'o str,
    pub(super) namespace: &'o str,
    pub(super) name: &'o str,
}

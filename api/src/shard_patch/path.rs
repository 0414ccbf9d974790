//! Where in the patch we are: a chain of borrowed segments, turned into text only for an error.

use std::fmt;

use super::{Error, Fault};

/// A place in the patch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path<'a> {
    parent: Option<&'a Self>,
    segment: Segment<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Segment<'a> {
    Root,
    Member(&'a str),
    Index(usize),
}

impl<'a> Path<'a> {
    pub(super) fn root() -> Self {
        Self {
            parent: None,
            segment: Segment::Root,
        }
    }

    pub(super) fn member(&'a self, name: &'a str) -> Self {
        Self {
            parent: Some(self),
            segment: Segment::Member(name),
        }
    }

    pub(super) fn index(&'a self, index: usize) -> Self {
        Self {
            parent: Some(self),
            segment: Segment::Index(index),
        }
    }

    pub(super) fn error(&self, fault: Fault) -> Error {
        let path = self.to_string();
        Error {
            path: if path.is_empty() {
                ".".to_owned()
            } else {
                path
            },
            fault,
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nested = match self.parent {
            Some(parent) => {
                parent.fmt(f)?;
                !matches!(parent.segment, Segment::Root)
            }
            None => false,
        };
        match self.segment {
            Segment::Root => Ok(()),
            Segment::Index(index) => write!(f, "[{index}]"),
            // As Kubernetes writes keys of maps: `metadata.labels[example.com/x]`.
            Segment::Member(name) if name.contains(['.', '[', ']']) => write!(f, "[{name}]"),
            Segment::Member(name) if nested => write!(f, ".{name}"),
            Segment::Member(name) => f.write_str(name),
        }
    }
}

//! The admission webhook of OpenSandbox pools.

#![forbid(unsafe_code)]

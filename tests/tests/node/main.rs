//! A real node: pods run, print, are entered, crash and come back; and when it ends, whatever way, the
//! machine is as it was.
#![expect(clippy::tests_outside_test_module, reason = "integration test")]

mod images;
mod leftovers;
mod pods;

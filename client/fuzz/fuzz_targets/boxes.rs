//! The body of a changeset's entry. What must hold stands in `checks`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sealwire_client_fuzz::checks::boxes(bytes));

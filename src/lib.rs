//! Where the relay touches the world: gateway, HTTP, stores, configuration, telemetry.

pub mod cli;
pub mod client_address;
pub mod commands;
pub mod config;
mod drained;
pub mod fcm;
pub mod gateway;
pub mod http;
pub mod listener;
mod memory;
pub mod operator;
pub mod relay;
pub mod secrets;
mod socket;
pub mod store;
pub mod telemetry;
pub mod worker;

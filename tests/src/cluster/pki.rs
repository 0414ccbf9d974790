//! The files a cluster's own programs know each other by.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::Result;

use super::MASTERS;
use crate::component::{
    API_SERVER_IDENTITY, API_SERVER_NAMES, ETCD_CLIENT_IDENTITY, ETCD_IDENTITY,
    KUBELET_CLIENT_IDENTITY, Pki, TOKEN_IDENTITY,
};
use crate::credentials::{self, Authority, write_private};

/// Writes them into `directory`, for an API server at `address`.
pub(super) fn write(directory: &Path, authority: &Authority, address: Ipv4Addr) -> Result<Pki> {
    std::fs::create_dir(directory)?;
    let address = address.to_string();
    let mut names = API_SERVER_NAMES.to_vec();
    if !names.contains(&address.as_str()) {
        names.push(&address);
    }
    let pki = Pki::new(directory.to_owned());
    write_private(pki.authority(), &authority.pem())?;
    let identities = [
        (
            ETCD_IDENTITY,
            authority.server(ETCD_IDENTITY, &["127.0.0.1"])?,
        ),
        (
            ETCD_CLIENT_IDENTITY,
            authority.user(ETCD_CLIENT_IDENTITY, &[])?,
        ),
        (
            API_SERVER_IDENTITY,
            authority.server(API_SERVER_IDENTITY, &names)?,
        ),
        (
            KUBELET_CLIENT_IDENTITY,
            authority.user(KUBELET_CLIENT_IDENTITY, &[MASTERS])?,
        ),
    ];
    for (name, identity) in identities {
        write_private(pki.certificate(name), &identity.certificate)?;
        write_private(pki.key(name), &identity.key)?;
    }
    let (private, public) = credentials::token_keys()?;
    write_private(pki.key(TOKEN_IDENTITY), &private)?;
    write_private(pki.token_key(), &public)?;
    Ok(pki)
}

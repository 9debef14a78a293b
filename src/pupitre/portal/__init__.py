"""The portal: pages, REST and live events. It writes wishes as rows and reads what the cluster said; no more."""

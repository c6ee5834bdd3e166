#!/bin/sh
# Starts Redis with one user, who may use the yard's keys and nothing that reaches beyond them. The password is in the
# environment and goes in by standard input: neither a file nor the list of processes shows it.
set -eu
if [ "$REDIS_PASSWORD" = development ]; then
    echo "WARNING: development passwords are in use. Copy .env.example to .env and set your own before anybody else can reach this machine." >&2
fi
# Nobody can be the user `default`, which is off, but Redis reads its own file as that one at the start: what that may not do
# is left out of what it reads.
exec redis-server - <<END
$(cat /etc/taskyard/redis.conf)
user default off ~* &* +@all
user taskyard on >$REDIS_PASSWORD ~taskyard:* &taskyard:* -@all +@read +@write +@scripting +@connection +@transaction +@pubsub -@dangerous -@admin -script|flush -script|kill -function +info +time
END

"""What options and commands were called before 0.2: refused, with the new name. To be deleted with 0.3."""

OPTIONS = {  # (command, or "" for all; old option): what to use
    ("solve", "--group"): "the command `placement group`",
    ("solve", "--grouping-out"): "`placement group --output FILE`",
    ("solve", "--home-from"): "`placement group --home-from`",
    ("solve", "--token-tolerance"): "`placement group --token-tolerance`",
    ("solve", "--by"): "the command `placement by-class --by`",
    ("solve", "--maps-out"): "`placement by-class --maps-out`",
    ("solve", "--pareto"): "the command `placement front`, whose folder is `--front-out`",
    ("solve", "--robust"): "the command `placement robust --parts`",
    ("solve", "--server"): "the command `placement submit --server`",
    ("solve", "--token"): "`placement submit --token`",
    ("solve", "--max-moves-per-layer"): "`--max-moves N/layer`",
    ("solve", "--migration-out"): "`placement diff OLD NEW --output FILE`",
    ("", "--max-node-imbalance"): "`--max-imbalance GPUS,NODES`",
    ("", "--no-bound"): "`--bound none`",
    ("", "--engine"): "`--workers ray`",
    ("", "--address"): "`--workers HOST:PORT`",
}
COMMANDS = {  # (group; old command): what to use
    ("traces", "characterize"): "placement traces info --study",
}

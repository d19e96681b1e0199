# What the recipes share; they set $out, $mocap and $photos and source this.
python=${PYTHON:-python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
processes=${PROCESSES:-2} # of the backbone's training: the machine's cores, or GPUs

render() { # folder, seed, count, further options
	$python -m training.render --out "$out/$1" --seed "$2" --count "$3" --motion-capture "$mocap" \
		--background-people "$photos" "${@:4}"
}
pack() { # dataset, folder, further options
	$python -m training.pack "$1" --out "$out/packed/$2" "${@:3}"
}
train() { # processes, folder, further options; resumes a run that was stopped
	local count=$1 run=$out/$2
	shift 2
	if [ -e "$run/checkpoint.pt" ]; then set -- --resume; fi
	if [ "$count" = 1 ]; then set -- -m training.train --out "$run" "$@"; else
		set -- -m torch.distributed.run --nproc-per-node "$count" -m training.train --out "$run" "$@"; fi
	$python "$@"
}

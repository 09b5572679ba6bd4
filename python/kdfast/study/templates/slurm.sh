#!/bin/bash
# A study of kdfast {{ version }} under SLURM: the teacher, an array with a task for each pack that is not done, the report.
#     bash THIS_FILE      (outside a job) submits these three jobs, each of which runs this file
# Submitted again, it does what is not stored yet. Logs: the folder logs/ of the study.
python={{ python | quote }}
study={{ study | quote }}
packs=(
{%- for pack in packs %}
    {{ pack.id }}
{%- endfor %}
)
options=(
{%- for option in options %}
    {{ option | quote }}
{%- endfor %}
)

# Submits this file, to do $1 in a job; sbatch's options follow. Prints the job's number.
submit() {
    local job
    job=$(sbatch --parsable "${options[@]}" "${@:2}" -- "${BASH_SOURCE[0]}" "$1") || return
    echo "${job%%;*}" # the name of a cluster may follow
}

# Trains pack $1. A warning before the time limit (USR1) reaches this shell alone and is handed on: the worker saves
# checkpoints and exits with 75, and the job goes back into the queue. What ends a job (TERM, of scancel or preemption)
# reaches the worker too, which saves them as well; whether the job runs again is then SLURM's business.
work() {
    export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK MKL_NUM_THREADS=$SLURM_CPUS_PER_TASK
    local worker code is_signalled=yes is_warned=
    "$python" -m kdfast worker --store "$study" --pack "$1" --threads "$SLURM_CPUS_PER_TASK"{{ " --retry" if retry }} &
    worker=$!
    trap 'is_signalled=yes is_warned=yes; kill -USR1 "$worker"' USR1
    trap 'is_signalled=yes' TERM
    while [ "$is_signalled" ]; do # which ends `wait` before the worker ends
        is_signalled=
        wait "$worker"
        code=$?
    done
    case $is_warned/$code in
        yes/75 | yes/138) # 138: warned while Python was starting
            if [ "${SLURM_RESTART_COUNT:-0}" -ge {{ restarts }} ]; then
                echo "not done after {{ restarts }} restarts: the time limit is too short" >&2
                exit 1
            fi
            scontrol requeue "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}" &&
                echo "the time limit is near: back into the queue" >&2
            ;;
    esac
    exit "$code"
}

case ${1-submit} in
    teacher) work teacher ;;
    pack) work "${packs[$SLURM_ARRAY_TASK_ID]}" ;;
    report)
        trap '' USR1 # what remains of the time is enough
        exec "$python" -m kdfast report "$study"
        ;;
    submit) ;;
    *)
        echo "usage: bash ${BASH_SOURCE[0]}" >&2
        exit 2
        ;;
esac

mkdir -p "$study/logs" || exit
log={{ log | quote }}
jobs=()
take_back() {
    [ -z "${jobs[*]}" ] || scancel "${jobs[@]}"
    exit 1
}
{%- if teacher %}
teacher=$(submit teacher --job-name={{ name }}.teacher --output="$log.%j.out") || take_back
jobs+=("$teacher")
after=(--dependency=afterok:"$teacher" --kill-on-invalid-dep=yes)
{%- else %}
teacher= # it is stored
after=()
{%- endif %}
array=$(submit pack --job-name={{ name }} --output="$log.%A_%a.out" --array=0-{{ packs | length - 1 }} "${after[@]}") || take_back
jobs+=("$array")
report=$(submit report --job-name={{ name }}.report --output="$log.%j.out" --dependency=afterany:"$array") || take_back
jobs+=("$report")
echo "${teacher:+teacher: job $teacher, }packs: array $array of {{ packs | length }}, report: job $report"
echo "to take them back: scancel ${jobs[*]}"
